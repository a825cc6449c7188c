//! What only cgroup version 2 has. The host of most developers has version 1,
//! so `cargo xtask test` runs these in its guest.

mod common;

use common::{Lab, fixture, text};
use std::fs;

/// A job of two processes, which grow together, in a memcg that dies as one,
/// and a bystander outside it.
const JOB: &str = r#"
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    root=/sys/fs/cgroup$own
    mkdir $root/aside $root/job
    echo $$ > $root/aside/cgroup.procs
    echo +memory > $root/cgroup.subtree_control || exit 9
    echo 1 > $root/job/memory.oom.group
    sh -c "echo \$\$ > $root/job/cgroup.procs; sleep 1000 & exec $1 --mib 96"
    echo "the job ended with $?"
    cat $root/job/cgroup.procs
"#;

#[test]
#[ignore = "needs cgroup version 2: the guest stage runs it"]
fn a_job_dies_whole_and_the_rest_lives() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--on-oom", "kill"];
    let output = lab.run(&options, &["sh", "-c", JOB, "sh", &fixture("steady_leak")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    // Nobody of the job is left: its listing, after this line, is empty.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the job ended with 137\n", "{}", text(&output));
    let incident = lab.incident();
    let step = &incident["verdict"]["steps"][0];
    assert!(step["effect"].as_str().unwrap().contains("/job (memory.oom.group)"), "{step}");
    assert_eq!(step["outcome"], "relieved", "{step}");
}

#[test]
#[ignore = "needs cgroup version 2: the guest stage runs it"]
fn a_kill_that_the_kernel_wins_is_told_with_its_victim() {
    let lab = Lab::new();
    // A thread in one huge system call cannot be stopped: memory.high slows it
    // down, but in a long hold it reaches memory.max.
    let script = "import mmap; mmap.mmap(-1, 160 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)";
    let output = lab.run(&["--memory", "64M", "--on-oom", "freeze=100s"], &["python3", "-c", script]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incidents = lab.incidents();
    assert_eq!(incidents.len(), 2, "{}", text(&output));
    assert_eq!(incidents[0]["hold"]["threads_not_stopped"], 1, "{}", incidents[0]["hold"]);
    let incident = &incidents[1];
    assert_eq!(incident["trigger"], "killed_by_kernel", "{incident:#}");
    assert_eq!(incident["kernel_victims"][0]["comm"], "python3", "{incident:#}");
    let page = fs::read_to_string(lab.out().join(incident["id"].as_str().unwrap()).join("report.html")).unwrap();
    assert!(page.contains("The kernel killed python3"));
}

#[test]
#[ignore = "needs cgroup version 2: the guest stage runs it"]
fn whom_the_kernel_killed_is_remembered_by_the_faults_of_its_cgroup() {
    let lab = Lab::new();
    // The kernel fills the second part itself, which is no page fault.
    let script = "import mmap; kept = bytearray(40 << 20); \
        mmap.mmap(-1, 160 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)";
    let options = ["--memory", "64M", "--on-oom", "freeze=100s", "--no-heap", "--growth"];
    let output = lab.run(&options, &["python3", "-c", script]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incidents = lab.incidents();
    let incident = incidents.iter().find(|incident| incident["trigger"] == "killed_by_kernel").unwrap();
    assert_eq!((&incident["growth"]["scope"], &incident["growth"]["lost_samples"]), (&"cgroup".into(), &0.into()));
    let ended = &incident["ended"][0];
    assert_eq!((&ended["comm"], &ended["killed_by_kernel"]), (&"python3".into(), &true.into()), "{incident:#}");
    assert_eq!(ended["pid"], incident["kernel_victims"][0]["pid"], "{incident:#}");
    // One in 64 of its own 10,240 faults, at least.
    assert!(ended["growth"]["samples"].as_u64().unwrap() >= 150, "{:#}", ended["growth"]);
}
