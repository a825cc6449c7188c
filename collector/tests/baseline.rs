//! What grew, in real memcgs, against what the victims do.

mod common;

use common::{Lab, assert_unharmed, fixture, text};
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A victim that leaks 16 MiB a second, three functions in fixed shares, until 64 MiB.
#[test]
fn the_leak_is_in_the_verdict_with_its_size_and_its_time() {
    let lab = Lab::new();
    let command = [&fixture("steady_leak"), "--mib", "96", "--mib-per-s", "16"];
    let output = lab.run(&["--memory", "64M", "--on-oom", "grant=256M"], &command);
    assert_unharmed(&output);
    let incident = lab.incident();
    let baseline = &incident["baseline"];
    let grew = number(&baseline["after_bytes"]) - number(&baseline["before_bytes"]);
    // Four fifths of all that came since the first look, and all of that is the leak's.
    assert!(grew > 0.75 * f64::from(64 << 20), "{baseline:#}");
    let seconds = number(&baseline["before_us"]) / 1e6;
    assert!(grew / seconds < f64::from(24 << 20), "{grew} bytes in {seconds} s");
    let usage: Vec<f64> =
        baseline["usage"].as_array().unwrap().iter().map(|point| number(&point["usage_bytes"])).collect();
    assert!(usage.len() > 6, "{usage:?}");
    assert!(usage.last().unwrap() > &(0.8 * f64::from(64 << 20)), "{usage:?}");

    // By process, and by stack: each tells the same growth.
    let process = &baseline["processes"][0];
    assert_eq!(process["comm"], "steady_leak");
    let own = number(&process["after_bytes"]) - process["before_bytes"].as_f64().unwrap_or(0.0);
    assert!((own - grew).abs() < 0.1 * grew, "{own} of {grew}");
    assert_eq!(baseline["has_heap"], true);
    let heap = &incident["processes"][0]["heaps"][0];
    let stacks = heap["stacks"].as_array().unwrap();
    let sum = |of: &dyn Fn(&Value) -> f64| stacks.iter().map(of).sum::<f64>();
    let heap_grew = sum(&|stack| number(&stack["inuse"]["bytes"])) - sum(&|stack| number(&stack["before_bytes"]));
    let error = 4.0 * number(&heap["inuse"]["sigma_bytes"]) + 0.1 * grew;
    assert!((heap_grew - grew).abs() < error, "{heap_grew} of {grew} ± {error}");

    // It is cheap, and what it keeps is bounded.
    let cost = &baseline["cost"];
    assert!(number(&cost["took_us"]) < 0.02 * number(&cost["since_us"]), "{cost}");
    assert!(number(&cost["kept_bytes"]) < f64::from(256 << 10), "{cost}");

    // The biggest share is leak_medium's: 1:2:1.
    let told = text(&output);
    assert!(told.contains(" MiB in leak_medium, "), "{told}");
    let shown = text(&lab.reprieve("show").output().unwrap());
    assert!(shown.contains("WHAT GREW") && shown.contains(" MiB in leak_medium, "), "{shown}");
    let page = String::from_utf8(lab.file("report.html")).unwrap();
    assert!(page.contains("What grew in") && page.contains(" MiB in leak_medium, "));
    let markdown = text(&lab.reprieve("export").args(["--format", "markdown"]).output().unwrap());
    assert!(markdown.contains("## What grew in"), "{markdown}");
}

/// Without the library there are processes and kinds.
#[test]
fn without_a_heap_the_process_is_named() {
    let lab = Lab::new();
    let command = [&fixture("steady_leak"), "--mib", "64", "--mib-per-s", "32"];
    let output = lab.run(&["--memory", "48M", "--no-heap", "--on-oom", "grant=256M"], &command);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_eq!(incident["baseline"]["has_heap"], false);
    assert!(text(&output).contains(" MiB in steady_leak ["), "{}", text(&output));
}

/// What nobody has mapped is named by its kind.
#[test]
fn a_full_tmpfs_is_no_process() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "48M", "--on-oom", "grant=256M"], &[&fixture("tmpfs_writer"), "--mib", "64"]);
    assert_unharmed(&output);
    let told = text(&output);
    assert!(told.contains(" MiB of tmpfs and shared memory, "), "{told}");
}
