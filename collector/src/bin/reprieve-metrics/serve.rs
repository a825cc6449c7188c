//! HTTP/1.1 for scrapers: `GET /metrics`, one connection at a time.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Time for a request and its answer: whoever is slower must not keep others waiting.
const TIME: Duration = Duration::from_secs(1);
/// Longest request; Prometheus' has about 300 bytes.
const MOST_BYTES: usize = 8 << 10;
const MOST_HEADERS: usize = 64;
/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Serves for ever.
pub fn serve(listener: &TcpListener, metrics: &dyn Fn() -> String) {
    loop {
        // What is wrong with one connection is its own affair; where there are no files
        // left, there may be some in a moment.
        match listener.accept() {
            Ok((stream, _)) => drop(answer(stream, metrics)),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn answer(mut stream: TcpStream, metrics: &dyn Fn() -> String) -> io::Result<()> {
    let deadline = Instant::now() + TIME;
    let response = respond(&request(&mut stream, deadline)?, metrics);
    stream.set_write_timeout(Some(TIME))?;
    stream.write_all(response.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// Reads as far as its headers go, or [`MOST_BYTES`] of it.
fn request(stream: &mut TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    let mut part = [0; 1024];
    while !is_whole(&read) && read.len() < MOST_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            size => read.extend_from_slice(&part[..size]),
        }
    }
    Ok(read)
}

fn is_whole(read: &[u8]) -> bool {
    read.windows(4).any(|four| four == b"\r\n\r\n")
}

fn respond(request: &[u8], metrics: &dyn Fn() -> String) -> String {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let is_whole = parsed.parse(request).is_ok_and(|status| status.is_complete());
    let path = parsed.path.unwrap_or_default().split('?').next().unwrap_or_default();
    match (is_whole, parsed.method, path) {
        (true, Some("GET"), "/metrics") => response("200 OK", METRICS, &metrics(), true),
        (true, Some("HEAD"), "/metrics") => response("200 OK", METRICS, &metrics(), false),
        (true, Some("GET"), "/") => response("200 OK", PLAIN, "reprieve guard: see /metrics\n", true),
        (true, Some("GET" | "HEAD"), _) => response("404 Not Found", PLAIN, "see /metrics\n", true),
        (true, ..) => response("405 Method Not Allowed", PLAIN, "only GET\n", true),
        (false, ..) => response("400 Bad Request", PLAIN, "that is no request\n", true),
    }
}

fn response(status: &str, kind: &str, body: &str, with_body: bool) -> String {
    let length = body.len();
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let body = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(listener: &TcpListener, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn scrapers_are_answered_and_others_told_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = listener.try_clone().unwrap();
        std::thread::spawn(move || serve(&ours, &|| "a 1\n".to_owned()));
        let scraped = ask(&listener, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n");
        assert!(scraped.starts_with("HTTP/1.1 200 OK\r\n") && scraped.ends_with("\r\n\r\na 1\n"), "{scraped}");
        assert!(scraped.contains("version=0.0.4") && scraped.contains("Content-Length: 4\r\n"), "{scraped}");
        let head = ask(&listener, b"HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [
            (&b"GET /else HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"nonsense\r\n\r\n", "400"),
            (b"GET / HTTP/1.1\r\n\r\n", "200"),
        ] {
            let told = ask(&listener, request);
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
        }
        let long = [b"GET /metrics HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; MOST_BYTES]].concat();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.write_all(&long).unwrap();
        let mut told = [0; 12];
        stream.read_exact(&mut told).unwrap();
        assert_eq!(&told, b"HTTP/1.1 400");
        // Who says nothing keeps others waiting for no more than its time.
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let begun = Instant::now();
        assert!(ask(&listener, b"GET /metrics HTTP/1.1\r\n\r\n").contains(" 200 "));
        assert!(begun.elapsed() < TIME * 3, "{:?}", begun.elapsed());
    }
}
