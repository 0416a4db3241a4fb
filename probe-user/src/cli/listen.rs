//! Where to listen: `ADDRESS:PORT`.

use std::net::{Ipv6Addr, SocketAddr};

/// As the standard writes it, and IPv6 without brackets: Kubernetes puts a pod's bare address where `$(POD_IP)` stands. What
/// follows the last colon is then the port, so there has to be one. `fd00::7` alone is refused, because what is left of it is no
/// address; `fd00::5:7` is `fd00::5` and port 7.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().ok().or_else(|| without_brackets(text)).ok_or_else(|| {
        "an IP address and a port are allowed: 127.0.0.1:9464, [::1]:9464, or [::]:9464 for every address; of an \
         IPv6 address without brackets the port follows the last colon, fd00::7:9464"
            .to_owned()
    })
}

fn without_brackets(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let digits = port.bytes().all(|octet| octet.is_ascii_digit());
    let (address, port) = (address.parse::<Ipv6Addr>().ok()?, port.parse::<u16>().ok()?);
    digits.then(|| SocketAddr::from((address, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_a_port() {
        let cases = [
            ("IPv4", "127.0.0.1:9464", Some("127.0.0.1:9464")),
            ("brackets", "[::1]:9464", Some("[::1]:9464")),
            ("every address", "[::]:9464", Some("[::]:9464")),
            ("a pod's", "fd00::7:9464", Some("[fd00::7]:9464")),
            ("a pod's, written out", "fd00:10:244:0:0:0:0:7:9464", Some("[fd00:10:244::7]:9464")),
            ("every address, bare", ":::9464", Some("[::]:9464")),
            ("loopback, bare", "::1:9464", Some("[::1]:9464")),
            ("mapped", "::ffff:10.0.0.7:9464", Some("[::ffff:10.0.0.7]:9464")),
            ("no port", "fd00::7", None),
            ("no port, written out", "fd00:10:244:0:0:0:0:7", None),
            ("no port, IPv4", "127.0.0.1", None),
            ("no port, brackets", "[fd00::7]", None),
            ("empty port", "fd00::7:", None),
            ("port too large", "fd00::7:65536", None),
            ("port in hex", "fd00::7:beef", None),
            ("port with a sign", "fd00::7:+80", None),
            ("half a bracket", "[fd00::7:9464", None),
            ("zone", "fe80::7%eth0:9464", None),
            ("no address", "$(POD_IP):9464", None),
            ("name", "localhost:9464", None),
            ("port alone", "9464", None),
            ("nothing", "", None),
        ];
        for (name, text, expected) in cases {
            match (listen_address(text), expected) {
                (Ok(address), Some(expected)) => assert_eq!(address.to_string(), expected, "{name}"),
                (Err(message), None) => {
                    assert!(
                        message.contains("127.0.0.1:9464") && message.contains("fd00::7:9464"),
                        "{name}: {message}"
                    );
                }
                (found, _) => panic!("{name}: {text:?} is {found:?}"),
            }
        }
    }
}
