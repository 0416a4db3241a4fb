//! What an agent says of itself on its Prometheus page.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, ensure};

/// The page of metrics.
pub(super) fn page(address: SocketAddr) -> Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "no page: {}", answer.lines().next().unwrap_or_default());
    Ok(answer)
}

/// All series whose lines begin so, together.
pub(super) fn sum(page: &str, series: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(series));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    // Nothing of no series, not the negative zero that floating-point sums begin with.
    values.fold(0.0, std::ops::Add::add)
}
