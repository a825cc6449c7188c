//! Metrics, as promtool, Prometheus and Alertmanager see them.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Doomed, Lab, unpacked, wait_for};
use guard::{Grove, Guard, end_of, leak_in};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/prometheus/reprieve.rules.yml");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
/// From an OOM to the webhook: scrape, evaluation and grouping are a second each.
const ALERT_TIME: Duration = Duration::from_secs(60);

/// A port of loopback that nobody listens at.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a server answers; nothing while there is none.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
}

fn metrics(port: u16) -> String {
    let mut text = None;
    wait_for("metrics", || {
        text = get(port, "/metrics");
        text.is_some()
    });
    text.unwrap()
}

/// The value of a series, by how its line begins.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn wait_for_value(port: u16, series: &str, wanted: f64) -> String {
    let mut text = String::new();
    wait_for(series, || {
        text = metrics(port);
        text.lines().any(|line| line.starts_with(series)) && value(&text, series) == wanted
    });
    text
}

fn assert_promtool_likes(text: &str) {
    let mut promtool = Command::new(unpacked("prometheus", "promtool"));
    let mut child = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}\n{text}", common::text(&output));
}

#[test]
fn promtool_tells_good_metrics_from_bad_ones() {
    let mut promtool = Command::new(unpacked("prometheus", "promtool"));
    let bad = "# TYPE held_ms counter\nheld_ms 1\n";
    let mut child = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bad.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success(), "{}", common::text(&output));
}

#[test]
fn an_oom_is_counted_for_scrapers_and_in_the_file() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let (port, file) = (free_port(), lab.out().join("reprieve.prom"));
    let toml =
        format!("guard.metrics = '127.0.0.1:{port}'\nguard.textfile = {file:?}\nguard.on_oom = ['reclaim', 'kill']\n");
    let guard = Guard::start(&lab, &toml, &[&format!("{}/*", grove.path())]);
    let before = wait_for_value(port, "reprieve_guarded_cgroups ", 1.0);
    assert_promtool_likes(&before);
    assert_eq!(value(&before, "reprieve_incidents_total "), 0.0);
    end_of(&mut leak_in(&dir, "96"));
    let path = format!("{}/one", grove.path());
    let series =
        format!("reprieve_ooms_total{{cgroup=\"{path}\",container_id=\"\",container_runtime=\"\",pod_uid=\"\"}} ");
    let after = wait_for_value(port, &series, 1.0);
    assert_promtool_likes(&after);
    assert_eq!(value(&after, "reprieve_verdicts_total{action=\"kill\",outcome=\"relieved\"} "), 1.0);
    assert_eq!(value(&after, "reprieve_incidents_total "), 1.0);
    assert_eq!(value(&after, "reprieve_config_last_reload_successful "), 1.0);
    guard.wait_for("report  ");
    let held = lab.incident()["hold"]["held_us"].as_f64().unwrap() / 1e6;
    let told = value(&after, "reprieve_hold_duration_seconds_sum ");
    assert!((told - held).abs() < 1e-6, "{told} for {held}");
    let locked = value(&after, "reprieve_guardian_locked_bytes ");
    assert!((1e6..8e6).contains(&locked), "{locked}");
    // The file is the same text, a moment later.
    wait_for("the file", || fs::read_to_string(&file).is_ok_and(|text| text.contains(&format!("{series}1"))));
    assert_promtool_likes(&fs::read_to_string(&file).unwrap());
    // A wrong configuration is told, and a right one.
    guard.reload(&format!("{toml}guard.on_om = 1\n"));
    wait_for_value(port, "reprieve_config_last_reload_successful ", 0.0);
    guard.reload(&toml);
    wait_for_value(port, "reprieve_config_last_reload_successful ", 1.0);
    guard.end();
    assert!(get(port, "/metrics").is_none(), "somebody serves on");
    assert!(!file.exists(), "old figures are left");
}

#[test]
fn who_serves_metrics_may_die_and_may_do_nothing_else() {
    let lab = Lab::new();
    let port = free_port();
    let guard = Guard::start(&lab, &format!("guard.metrics = '127.0.0.1:{port}'\n"), &["/nowhere/*"]);
    metrics(port);
    let child = || {
        let all = fs::read_to_string(format!("/proc/{0}/task/{0}/children", guard.pid())).unwrap();
        let is_it =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "reprieve-metric\n");
        all.split_whitespace().find(is_it).map(str::to_owned)
    };
    let first = child().unwrap_or_else(|| panic!("{}", guard.said()));
    let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "VmLck:\t       0 kB"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{first}/oom_score_adj")).unwrap().trim(), "0");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.parse().unwrap()), Signal::SIGKILL).unwrap();
    guard.wait_for("reprieve-metrics ended (signal: 9 (SIGKILL)); it is started again in 10s");
    let mut text = String::new();
    wait_for("the next one", || {
        text = get(port, "/metrics").unwrap_or_default();
        !text.is_empty()
    });
    // What was told before it was there it has been told anew.
    wait_for_value(port, "reprieve_config_last_reload_successful ", 1.0);
    assert_ne!(child(), Some(first));
    // When the guard is killed nobody serves on.
    guard.signal(Signal::SIGKILL);
    wait_for("the end", || get(port, "/metrics").is_none());
}

#[test]
fn an_address_that_is_taken_is_told_and_hinders_nothing() {
    let lab = Lab::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let toml = format!("guard.metrics = '{}'\n", taken.local_addr().unwrap());
    let guard = Guard::start(&lab, &toml, &["/nowhere/*"]);
    guard.wait_for("cannot be listened at: ");
    guard.wait_for("reprieve-metrics ended (exit status: 1)");
    guard.end();
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let lab = Lab::new();
    let port = free_port();
    let guard = Guard::start(&lab, &format!("guard.metrics = '127.0.0.1:{port}'\n"), &["/nowhere/*"]);
    let source = include_str!("../src/bin/reprieve-metrics/counts.rs");
    let page = fs::read_to_string(PAGE).unwrap();
    let names = |text: &str, before: &str, after: char| -> std::collections::BTreeSet<String> {
        let begin = format!("{before}reprieve_");
        let found = text.match_indices(&begin).map(|(at, _)| &text[at + before.len()..]);
        found.map(|rest| rest.split(after).next().unwrap().to_owned()).collect()
    };
    // Tests begin later, and have series instead of names.
    let made = names(source.split("#[cfg(test)]").next().unwrap(), "\"", '"');
    let told = names(&page, "| `", '`');
    assert_eq!(made, told);
    assert!(made.len() > 15, "{made:?}");
    // Those without labels are there from the beginning.
    let text = metrics(port);
    assert!(text.contains("\nreprieve_unanswered_ooms_total 0\n"), "{text}");
    guard.end();
}

#[test]
fn promtool_likes_the_rules() {
    let output = Command::new(unpacked("prometheus", "promtool")).args(["check", "rules", RULES]).output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("SUCCESS: 5 rules found"), "{}", common::text(&output));
}

/// What a webhook is sent, once somebody sends something.
fn posted(listener: &TcpListener, logs: &Path) -> Value {
    listener.set_nonblocking(true).unwrap();
    let begun = Instant::now();
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) if begun.elapsed() < ALERT_TIME => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => {
                let said = |log: &str| fs::read_to_string(logs.join(log)).unwrap();
                panic!("no alert: {error}\n{}\n{}", said("prometheus.log"), said("alertmanager.log"));
            }
        }
    };
    stream.set_nonblocking(false).unwrap();
    let mut request = Vec::new();
    let mut part = [0; 4096];
    loop {
        let size = stream.read(&mut part).unwrap();
        request.extend_from_slice(&part[..size]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            assert!(head.starts_with("POST /hook "), "{head}");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            return serde_json::from_str(body).unwrap();
        }
        assert!(size > 0, "the request broke off: {text}");
    }
}

/// Starts a server of an unpacked package with its words in a file. What it has below
/// /usr/share it finds there, in a mount namespace of its own.
fn serve(package: &str, arguments: &[String], log: &Path) -> Doomed {
    let program = unpacked(package, package);
    let share = program.parent().unwrap().with_file_name("share");
    let file = File::create(log).unwrap();
    let script = "mount -t overlay overlay -o \"lowerdir=$0:/usr/share\" /usr/share && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(share).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    Doomed(command.spawn().unwrap())
}

#[test]
fn prometheus_scrapes_alerts_and_alertmanager_posts() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).display().to_string();
    let [scraped, prometheus_port, alerts] = [(); 3].map(|()| free_port());
    let webhook = TcpListener::bind("127.0.0.1:0").unwrap();
    let hook = webhook.local_addr().unwrap();
    // JSON is YAML.
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES],
        "scrape_configs": [{"job_name": "reprieve", "static_configs": [{"targets": [format!("127.0.0.1:{scraped}")]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [format!("127.0.0.1:{alerts}")]}]}]},
    });
    fs::write(at("prometheus.yml"), config.to_string()).unwrap();
    let config = json!({
        "route": {"receiver": "hook", "group_wait": "1s", "group_interval": "1s", "group_by": ["alertname"]},
        "receivers": [{"name": "hook", "webhook_configs": [{"url": format!("http://{hook}/hook")}]}],
    });
    fs::write(at("alertmanager.yml"), config.to_string()).unwrap();
    let toml = format!("guard.metrics = '127.0.0.1:{scraped}'\nguard.on_oom = ['kill']\n");
    let guard = Guard::start(&lab, &toml, &[&format!("{}/*", grove.path())]);
    let _alertmanager = serve(
        "prometheus-alertmanager",
        &[
            format!("--config.file={}", at("alertmanager.yml")),
            format!("--storage.path={}", at("alerts")),
            format!("--web.listen-address=127.0.0.1:{alerts}"),
            "--cluster.listen-address=".to_owned(),
        ],
        &work.path().join("alertmanager.log"),
    );
    let _prometheus = serve(
        "prometheus",
        &[
            format!("--config.file={}", at("prometheus.yml")),
            format!("--storage.tsdb.path={}", at("data")),
            format!("--web.listen-address=127.0.0.1:{prometheus_port}"),
        ],
        &work.path().join("prometheus.log"),
    );
    let query = |expression: &str| -> Value {
        let body = get(prometheus_port, &format!("/api/v1/query?query={expression}"));
        body.and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default()
    };
    wait_for("a scrape", || query("up")["data"]["result"][0]["value"][1] == "1");
    assert_eq!(query("reprieve_guarded_cgroups")["data"]["result"][0]["value"][1], "1");
    // Nothing has happened, and nothing is told.
    assert_eq!(query("ALERTS")["data"]["result"], json!([]));
    end_of(&mut leak_in(&dir, "96"));
    let alert = posted(&webhook, work.path());
    assert_eq!((&alert["status"], &alert["receiver"]), (&json!("firing"), &json!("hook")), "{alert:#}");
    assert_eq!(alert["alerts"][0]["labels"]["alertname"], "ReprieveOom", "{alert:#}");
    assert_eq!(alert["alerts"][0]["labels"]["job"], "reprieve");
    let summary = alert["alerts"][0]["annotations"]["summary"].as_str().unwrap();
    assert_eq!(summary, format!("A cgroup on 127.0.0.1:{scraped} ran out of memory"));
    guard.end();
}
