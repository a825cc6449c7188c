//! Answers of debuginfod servers: what comes over the wire, byte by byte. Nothing is left
//! of one that is of no use, and no more is taken than is allowed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::{BuildId, DebugDirs, Debuginfod, Outcome, Settings, find_binary};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Most that may be downloaded for one input.
const MOST: u64 = 8 << 10;
/// Longest that all answers to one input may take.
const TIME: Duration = Duration::from_secs(2);

/// A server that gives the same answer to everything.
struct Server {
    url: String,
    answer: Arc<Mutex<Vec<u8>>>,
    cache: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let answer = Arc::new(Mutex::new(Vec::new()));
        let given = answer.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(&given.lock().unwrap_or_else(PoisonError::into_inner));
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
        Server { url, answer, cache: tempfile::tempdir_in("/dev/shm").expect("tmpfs") }
    }
}

fuzz_target!(|input: &[u8]| {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(Server::start);
    // It would be asked, whoever that is.
    let word = |word: &[u8]| input.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    if word(b"location") {
        return;
    }
    *server.answer.lock().unwrap_or_else(PoisonError::into_inner) = input.to_vec();
    let cache = server.cache.path();
    let client = Debuginfod::new(std::slice::from_ref(&server.url), cache.to_owned(), TIME, MOST).expect("a URL");
    let dirs = DebugDirs { dirs: Vec::new() };
    let settings = Settings { debuginfod: Some(&client), ..Settings::new(&dirs) };
    let id = BuildId::from_bytes(&[0xab; 20]);
    let (found, tried) = find_binary(&id, Path::new("/nowhere/p"), &settings);
    let is_used = tried.iter().any(|tried| tried.outcome == Outcome::Used);
    assert_eq!(found.is_some(), is_used, "{tried:?}");
    let left: Vec<_> = fs::read_dir(cache.join(id.as_str())).into_iter().flatten().flatten().collect();
    let bytes: u64 = left.iter().filter_map(|file| file.metadata().ok()).map(|about| about.len()).sum();
    assert!(left.len() == usize::from(is_used) && bytes <= MOST, "{left:?}: {bytes} bytes");
    let _ = fs::remove_dir_all(cache.join(id.as_str()));
});
