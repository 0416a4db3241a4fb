//! For who comes to ask: a page of metrics for Prometheus, and whether the agent is alive and ready. Nothing here waits for a
//! collector, and whatever visitors do, the pipeline does not wait for them.

mod page;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use self::page::Page;
use crate::pipeline::Visit;
use crate::sink::otlp::Resources;
use crate::telemetry::SelfStats;

/// Connections that are open at the same time; further ones wait.
const CONNECTIONS: usize = 32;
/// How long a request may take to come.
const REQUEST: Duration = Duration::from_secs(10);
/// After so long a connection takes no further request, and so long what it was asked last may take yet.
const CONNECTION: Duration = Duration::from_secs(600);
const LEAVE: Duration = Duration::from_secs(30);
/// How long the pipeline may take to answer: between its turns it has a few batches of records, or an export to encode.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// Where connections cannot be accepted (no descriptors): until it is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// An address that is listened on; nobody is answered yet.
#[derive(Debug)]
pub struct Listener(StdListener);

impl Listener {
    /// Takes the address, before anything else is begun: whoever else has it should be known at once.
    ///
    /// # Errors
    ///
    /// The system's: it is taken, it is not this host's, its port is another user's.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The address, with the port that the system chose for port 0.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Answers until it is dropped.
#[derive(Debug)]
pub struct Server(JoinHandle<()>);

impl Server {
    /// Begins to answer. Inside a runtime.
    ///
    /// # Errors
    ///
    /// The runtime does not take the socket.
    pub fn start(
        listener: Listener,
        visits: mpsc::Sender<Visit>,
        stats: Arc<SelfStats>,
        resources: Resources,
        signals: &[&'static str],
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener.0)?;
        let desk =
            Arc::new(Desk { visits, stats, resources, signals: signals.join(" "), pages: Semaphore::new(1) });
        Ok(Self(tokio::spawn(accept(listener, desk))))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, desk: Arc<Desk>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let desk = Arc::clone(&desk);
                tokio::spawn(async move {
                    serve(stream, desk).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a visitor could not be let in");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// One connection, from its first request to its end.
async fn serve(stream: TcpStream, desk: Arc<Desk>) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(&request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(CONNECTION) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LEAVE, connection).await {
                Ok(ended) => ended,
                Err(_late) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a visitor left");
    }
}

/// What answers need.
#[derive(Debug)]
struct Desk {
    visits: mpsc::Sender<Visit>,
    stats: Arc<SelfStats>,
    resources: Resources,
    /// Those that run.
    signals: String,
    /// One page at a time: each is as large as all there is.
    pages: Semaphore,
}

/// The pipeline has not answered.
struct Silent;

impl Desk {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response =
                reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD are allowed\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let silent = |what: &str| {
            let text = format!("{what}: the pipeline has not answered for {} s\n", ANSWER.as_secs());
            reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
        };
        match request.uri().path() {
            "/metrics" => match self.page().await {
                Ok(text) => reply(StatusCode::OK, page::CONTENT_TYPE, text),
                Err(Silent) => silent("no metrics"),
            },
            "/healthz" => match self.ask(|_store| ()).await {
                Ok(()) => reply(StatusCode::OK, TEXT, "alive\n".to_owned()),
                Err(Silent) => silent("not alive"),
            },
            // Who is answered at all is so after programs were attached and records taken in.
            "/readyz" => match self.ask(|_store| ()).await {
                Ok(()) => reply(StatusCode::OK, TEXT, format!("ready: {}\n", self.signals)),
                Err(Silent) => silent("not ready"),
            },
            "/" => reply(StatusCode::OK, TEXT, "probe: /metrics /healthz /readyz\n".to_owned()),
            _ => reply(StatusCode::NOT_FOUND, TEXT, "there are /metrics, /healthz and /readyz\n".to_owned()),
        }
    }

    async fn page(&self) -> Result<String, Silent> {
        let _turn = self.pages.acquire().await.map_err(|_closed| Silent)?;
        let page = self.ask(Page::of).await?.with_own(&self.stats, self.resources.host());
        page.write().map_err(|_error| Silent)
    }

    /// What the pipeline's store answers.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&crate::series::Store) -> T + Send + 'static,
    ) -> Result<T, Silent> {
        let (reply, answer) = oneshot::channel();
        let visit: Visit = Box::new(move |store| {
            // Whoever asked may have gone.
            let _gone = reply.send(question(store));
        });
        let asked = async {
            self.visits.send(visit).await.map_err(|_ended| Silent)?;
            answer.await.map_err(|_ended| Silent)
        };
        tokio::time::timeout(ANSWER, asked).await.map_err(|_late| Silent)?
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
