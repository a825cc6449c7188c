//! A client of debuginfod servers (debuginfod(8), "WEBAPI").
//!
//! Used only where it was asked for: a request tells the server which program ran
//! here. Bounded in time and in bytes, all requests together. HTTP only: a TLS
//! library would be larger than all the rest, and a debuginfod of one's own asks
//! the servers that want TLS.

use super::Found;
use super::trail::{Outcome, Source, Trail};
use crate::image::{BuildId, Image};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest for one request; a server that does not answer has only itself to answer
/// for.
const REQUEST: Duration = Duration::from_secs(30);

/// Most that the headers of an answer may take.
const MOST_HEADERS_BYTES: usize = 64 << 10;

/// Servers, what they may cost, and where what they gave is kept.
#[derive(Debug)]
pub struct Debuginfod {
    servers: Vec<String>,
    cache: PathBuf,
    left: Mutex<Left>,
}

/// What may still be spent.
#[derive(Debug)]
struct Left {
    time: Duration,
    bytes: u64,
}

/// A server that cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnusableUrl {
    /// TLS is not spoken here.
    #[error(
        "{0}: only http is spoken; start a debuginfod of your own with DEBUGINFOD_URLS={0} and name that, \
         or fetch with debuginfod-find and name the folder with --debug-dir"
    )]
    NeedsTls(String),
    /// It is no URL of HTTP.
    #[error("{0}: not a URL like http://localhost:8002")]
    NotHttp(String),
}

/// What a server is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    DebugInfo,
    Executable,
}

impl Kind {
    /// In the URL, and in the cache of elfutils' client.
    fn name(self) -> &'static str {
        match self {
            Kind::DebugInfo => "debuginfo",
            Kind::Executable => "executable",
        }
    }
}

impl Debuginfod {
    /// Servers in the order in which they are asked; `time` and `bytes` are for all
    /// requests together. `cache` has the layout of elfutils' client.
    pub fn new(servers: &[String], cache: PathBuf, time: Duration, bytes: u64) -> Result<Self, UnusableUrl> {
        for server in servers {
            if server.starts_with("https://") {
                return Err(UnusableUrl::NeedsTls(server.clone()));
            }
            if !server.strip_prefix("http://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) {
                return Err(UnusableUrl::NotHttp(server.clone()));
            }
        }
        let servers = servers.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Ok(Debuginfod { servers, cache, left: Mutex::new(Left { time, bytes }) })
    }

    /// The file with this build ID, from the cache or from the first server that has
    /// it.
    pub(super) fn fetch(
        &self,
        id: &BuildId,
        kind: Kind,
        source: Source,
        trail: &mut Trail,
        judge: &dyn Fn(&Image) -> Outcome,
    ) -> Option<Found> {
        let cached = self.cache.join(id.as_str()).join(kind.name());
        // elfutils leaves an empty file where a server had none.
        if fs::metadata(&cached).is_ok_and(|m| m.is_file() && m.len() > 0)
            && let Some(found) = trail.first(source, [cached.clone()], judge)
        {
            return Some(found);
        }
        for server in &self.servers {
            let url = format!("{server}/buildid/{id}/{}", kind.name());
            let begun = Instant::now();
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            let fetched = left.time.is_zero().then_some(Err(Outcome::TimedOut));
            let fetched = fetched.unwrap_or_else(|| guarded(|| download(&url, &cached, &mut left)));
            left.time = left.time.saturating_sub(begun.elapsed());
            drop(left);
            let image = fetched.and_then(|()| {
                let file = File::open(&cached).map_err(|_| Outcome::NotReadable)?;
                Image::open(&file).map_err(|_| Outcome::NotElf)
            });
            let outcome = image.as_ref().map_or_else(|&outcome| outcome, judge);
            trail.add(source, Path::new(&url), outcome);
            match image {
                Ok(image) if outcome == Outcome::Used => return Some((image, cached)),
                // Not to be met in the cache again.
                _ if fetched.is_ok() => drop(fs::remove_file(&cached)),
                _ => {}
            }
        }
        None
    }
}

/// minreq 3.0.0 takes two bytes off its allowance for headers for the end of each line, also
/// when fewer are left (`read_metadata` and `read_trailers` in its response.rs). It is built
/// to panic then, and not to go on without any limit.
fn guarded(download: impl FnOnce() -> Result<(), Outcome>) -> Result<(), Outcome> {
    catch_unwind(AssertUnwindSafe(download)).unwrap_or(Err(Outcome::NoAnswer))
}

/// Puts what is at the URL into the cache, whole or not at all.
fn download(url: &str, to: &Path, left: &mut Left) -> Result<(), Outcome> {
    let deadline = Instant::now() + left.time.min(REQUEST);
    // In whole seconds, at least one; it is looked at the clock below as well.
    let seconds = left.time.min(REQUEST).as_secs_f64().ceil().max(1.0) as u64;
    let request =
        minreq::get(url).with_timeout(seconds).with_max_redirects(3).with_max_headers_size(MOST_HEADERS_BYTES);
    let mut response = request.send_lazy().map_err(|error| outcome_of(&error))?;
    match response.status_code {
        200 => {}
        404 => return Err(Outcome::Absent),
        _ => return Err(Outcome::NoAnswer),
    }
    let length = response.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: Option<u64> = length.and_then(|(_, value)| value.trim().parse().ok());
    if length.is_some_and(|length| length > left.bytes) {
        return Err(Outcome::TooLarge);
    }
    let folder = to.parent().ok_or(Outcome::NotReadable)?;
    fs::create_dir_all(folder).map_err(|_| Outcome::NotReadable)?;
    let name = to.file_name().map(|name| name.display().to_string()).unwrap_or_default();
    let temporary = folder.join(format!(".{name}-{}", std::process::id()));
    let written = write(&mut response, &temporary, deadline, &mut left.bytes);
    let whole = written.and_then(|written| {
        // A connection that breaks ends the body without an error.
        if length.is_some_and(|length| length != written) {
            return Err(Outcome::Damaged);
        }
        fs::rename(&temporary, to).map_err(|_| Outcome::NotReadable)
    });
    if whole.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    whole
}

/// Copies no more than `most` bytes, and takes off what it copied.
fn write(response: &mut impl Read, to: &Path, deadline: Instant, most: &mut u64) -> Result<u64, Outcome> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to);
    let file = file.as_mut().map_err(|_| Outcome::NotReadable)?;
    let mut buffer = vec![0; 64 << 10];
    let mut written = 0;
    loop {
        if Instant::now() >= deadline {
            return Err(Outcome::TimedOut);
        }
        let read = match response.read(&mut buffer) {
            Ok(0) => return Ok(written),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(Outcome::TimedOut),
            Err(_) => return Err(Outcome::NoAnswer),
        };
        *most = most.checked_sub(read as u64).ok_or(Outcome::TooLarge)?;
        file.write_all(&buffer[..read]).map_err(|_| Outcome::NotReadable)?;
        written += read as u64;
    }
}

fn outcome_of(error: &minreq::Error) -> Outcome {
    match error {
        minreq::Error::HttpsFeatureNotEnabled => Outcome::NotSupported,
        minreq::Error::IoError(error) if error.kind() == io::ErrorKind::TimedOut => Outcome::TimedOut,
        _ => Outcome::NoAnswer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// A server that answers every request with these bytes and hangs up, after a
    /// pause.
    fn server(answer: Vec<u8>, pause: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                thread::sleep(pause);
                let _ = stream.write_all(&answer);
            }
        });
        url
    }

    fn ask(url: &str, time: Duration, bytes: u64) -> (Outcome, Duration, Vec<PathBuf>) {
        let cache = tempfile::tempdir().unwrap();
        let client = Debuginfod::new(&[url.to_owned()], cache.path().to_owned(), time, bytes).unwrap();
        let mut trail = Trail::default();
        let begun = Instant::now();
        let id = BuildId::from_bytes(&[0xab; 20]);
        let found = client.fetch(&id, Kind::DebugInfo, Source::BuildId, &mut trail, &|_| Outcome::Used);
        assert!(found.is_none());
        let left = fs::read_dir(cache.path().join(id.as_str()))
            .map_or_else(|_| Vec::new(), |entries| entries.map(|e| e.unwrap().path()).collect());
        (trail.into_tried().remove(0).outcome, begun.elapsed(), left)
    }

    fn body(claimed: usize, bytes: usize) -> Vec<u8> {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {claimed}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + bytes, 0x7f);
        answer
    }

    /// An answer with headers of so many bytes, and one more.
    fn headers(bytes: usize) -> Vec<u8> {
        let mut answer = b"HTTP/1.1 404 Not Found\r\n".to_vec();
        // As they are counted: with two bytes for the end of the line.
        answer.extend(format!("a:{}\r\n", "b".repeat(bytes - 4)).bytes());
        answer.extend(b"c\nd: e\r\n\r\n");
        answer
    }

    const PLENTY: Duration = Duration::from_secs(20);
    const NOW: Duration = Duration::ZERO;

    #[test]
    fn each_bad_server_is_a_miss_with_its_reason_and_leaves_nothing() {
        for (answer, bytes, wanted) in [
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(), 1 << 20, Outcome::Absent),
            (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".to_vec(), 1 << 20, Outcome::NoAnswer),
            (b"SSH-2.0-nothing\r\n".to_vec(), 1 << 20, Outcome::NoAnswer),
            // Headers that leave one byte of what they may be; then another.
            (headers(MOST_HEADERS_BYTES - 1), 1 << 20, Outcome::NoAnswer),
            (b"x".repeat(1 << 20), 1 << 20, Outcome::NoAnswer),
            (body(5000, 5000), 4999, Outcome::TooLarge),
            (b"HTTP/1.1 200 OK\r\n\r\nwithout end, as far as one can tell".to_vec(), 10, Outcome::TooLarge),
            (body(5000, 4000), 1 << 20, Outcome::Damaged),
            (body(5000, 5000), 1 << 20, Outcome::NotElf),
            (
                b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1/\r\nContent-Length: 0\r\n\r\n".to_vec(),
                1 << 20,
                Outcome::NotSupported,
            ),
        ] {
            let said = String::from_utf8_lossy(&answer).lines().next().unwrap().to_owned();
            let (outcome, _, left) = ask(&server(answer, NOW), PLENTY, bytes);
            assert_eq!(outcome, wanted, "{said}");
            assert!(left.is_empty(), "{said}: {left:?}");
        }
        // Nobody listens where somebody did.
        let url = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        assert_eq!(ask(&url, PLENTY, 1).0, Outcome::NoAnswer);
    }

    #[test]
    fn a_slow_server_costs_no_more_than_the_time_for_it() {
        let (outcome, took, left) =
            ask(&server(body(5, 5), Duration::from_secs(600)), Duration::from_millis(1500), 1 << 20);
        assert_eq!(outcome, Outcome::TimedOut);
        assert!(took < Duration::from_secs(10) && left.is_empty(), "{took:?} {left:?}");
        // When it is spent nobody is asked any more.
        assert_eq!(ask("http://127.0.0.1:1", NOW, 1).0, Outcome::TimedOut);
    }

    #[test]
    fn what_cannot_be_asked_is_refused_at_the_start() {
        let new = |url: &str| Debuginfod::new(&[url.to_owned()], PathBuf::new(), PLENTY, 1).map(drop);
        assert_eq!(new("https://a.example"), Err(UnusableUrl::NeedsTls("https://a.example".to_owned())));
        for url in ["ftp://a.example", "a.example", "http://", "http:///buildid", ""] {
            assert_eq!(new(url), Err(UnusableUrl::NotHttp(url.to_owned())));
        }
        assert_eq!(new("http://localhost:8002/"), Ok(()));
    }
}
