//! A stand-in for a kubelet: answers `GET /pods` over HTTP or HTTPS as it is told, also as no kubelet should.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::Result;
use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::certificates::Identity;
use crate::drop::Cgroup;

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A list of these pods.
    Pods(Vec<Value>),
    /// This status, with a text.
    Status(u16),
    /// A status of success and this.
    Body(String),
    /// The beginning of a list of pods, where a whole one was announced.
    Cut,
    /// A list of pods that goes on as long as it is read.
    Endless,
    /// Nothing, as long as who asked waits.
    Silence,
}

#[derive(Debug)]
struct Shared {
    answer: Mutex<Answer>,
    /// Heads of requests, in order.
    requests: Mutex<Vec<String>>,
    /// Answers that are over, taken or not.
    answered: AtomicUsize,
    ended: AtomicBool,
    /// Who it is, with TLS.
    tls: Option<Arc<ServerConfig>>,
}

/// It answers until it is dropped.
#[derive(Debug)]
pub struct Kubelet {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// The system gives none.
    pub fn start(answer: Answer) -> Result<Self> {
        Self::start_as(answer, None)
    }

    /// The same, with TLS and this certificate.
    ///
    /// # Errors
    ///
    /// The system gives no port, or the certificate does not read.
    pub fn start_tls(answer: Answer, identity: &Identity) -> Result<Self> {
        Self::start_as(answer, Some(identity.server()?))
    }

    fn start_as(answer: Answer, tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (answer, requests) = (Mutex::new(answer), Mutex::default());
        let (answered, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { answer, requests, answered, ended, tls });
        let of_thread = Arc::clone(&shared);
        let thread = Some(std::thread::spawn(move || serve(&listener, &of_thread)));
        Ok(Self { address, shared, thread })
    }

    /// For `--kubelet`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Answers so from now on.
    pub fn set(&self, answer: Answer) {
        *lock(&self.shared.answer) = answer;
    }

    /// Heads of the requests that came, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// Answers that are over: who asked has them, or has left.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Acquire)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // Wakes it; if that fails, it has ended.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _peer)) = listener.accept() {
        if shared.ended.load(Ordering::Acquire) {
            return;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // An error is that who asked has left.
            drop(secure(stream, &shared));
            shared.answered.fetch_add(1, Ordering::AcqRel);
        });
    }
}

fn secure(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let Some(tls) = &shared.tls else { return answer(&mut stream, shared) };
    let connection = ServerConnection::new(Arc::clone(tls)).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let answered = answer(&mut stream, shared);
    // Over, and not cut off.
    stream.conn.send_close_notify();
    stream.flush()?;
    answered
}

fn answer(stream: &mut (impl Read + Write), shared: &Shared) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        if stream.read(&mut octet)? == 0 {
            return Ok(());
        }
        head.extend(octet);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let answer = lock(&shared.answer).clone();
    lock(&shared.requests).push(head);
    match answer {
        Answer::Pods(items) => respond(stream, 200, &list(&items).to_string()),
        Answer::Status(status) => respond(stream, status, "no\n"),
        Answer::Body(body) => respond(stream, 200, &body),
        Answer::Cut => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{{\"kind\":\"PodList\",\"items\":[{{"
            )
        }
        Answer::Endless => {
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{{\"kind\":\"PodList\",\"items\":[")?;
            let more = "{\"spec\":{}},".repeat(4_000);
            loop {
                stream.write_all(more.as_bytes())?;
            }
        }
        // Until who asked closes.
        Answer::Silence => stream.read(&mut [0]).map(|_| ()),
    }
}

fn respond(stream: &mut impl Write, status: u16, body: &str) -> std::io::Result<()> {
    // Whoever follows this finds a list of pods.
    let location = if status / 100 == 3 { "Location: /pods?again\r\n" } else { "" };
    write!(
        stream,
        "HTTP/1.1 {status} X\r\n{location}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn list(items: &[Value]) -> Value {
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

/// A pod of a deployment `NAME`, in a namespace `shop`, with one container, and a cgroup as a kubelet and containerd make it.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Id of its container.
    pub id: String,
    uid: String,
    cgroup: Cgroup,
    /// From the innermost out.
    _above: [Cgroup; 3],
}

impl Pod {
    /// Makes the cgroups; `digits` (two, hexadecimal) are repeated in ids.
    ///
    /// # Errors
    ///
    /// No hierarchy, or no right to write to it.
    pub fn new(name: &str, digits: &str) -> Result<Self> {
        let id = digits.repeat(32);
        let uid = format!(
            "{}-{}-4{}-8{}-{}",
            digits.repeat(4),
            digits.repeat(2),
            &id[..3],
            &id[..3],
            digits.repeat(6)
        );
        let outer = Cgroup::new()?;
        let slice = outer.below("kubepods-burstable.slice")?;
        let of_pod = slice.below(&format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_")))?;
        let cgroup = of_pod.below(&format!("cri-containerd-{id}.scope"))?;
        Ok(Self { name: format!("{name}-5d78c9869d-abcde"), id, uid, cgroup, _above: [of_pod, slice, outer] })
    }

    /// Moves a process into its container.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.cgroup.add(pid)
    }

    /// As the kubelet of `node` tells of it.
    #[must_use]
    pub fn on(&self, node: &str) -> Value {
        let Self { name, id, uid, cgroup: _, _above } = self;
        let set = name.rsplit_once('-').map_or(name.as_str(), |(set, _)| set);
        json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": uid,
                "labels": { "app": "web", "pod-template-hash": "5d78c9869d", "secret": "not told" },
                "ownerReferences": [{ "kind": "ReplicaSet", "name": set, "controller": true }],
            },
            "spec": { "nodeName": node, "containers": [{ "name": "nginx" }] },
            "status": { "containerStatuses": [{
                "name": "nginx", "image": "docker.io/library/nginx:1.27", "containerID": format!("containerd://{id}"),
                "state": { "running": { "startedAt": "2026-11-20T08:15:31Z" } }, "lastState": {},
            }] },
        })
    }
}
