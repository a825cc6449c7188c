//! How much reserve a guardian needs that lives inside the full memcg: one does.

use crate::cgroup::{self, Hierarchy, Memcg, Version};
use crate::hold::ReserveBrake;
use crate::incident::model::HoldReport;
use crate::incident::store::Store;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Limit of the memcg: the guardian's locked pages fit in, and then some.
const LIMIT_BYTES: u64 = 64 << 20;
/// Threads that run out of memory together.
pub const THREADS: u32 = 16;
/// What is recommended is this many times what was seen above the limit, and whole MiB.
const MARGIN: u64 = 2;
/// The least that is.
const LEAST_BYTES: u64 = 8 << 20;

/// What was seen, and what is recommended.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Most that was above the limit during the hold.
    pub used_bytes: u64,
    /// For `memory.oom.reserve`.
    pub recommended_bytes: u64,
}

/// Runs a guardian inside a memcg that its command fills.
pub fn measure() -> Result<Need, String> {
    let hierarchy = Hierarchy::memory().map_err(|e| e.to_string())?;
    if hierarchy.version != Version::V2 {
        return Err("the memory controller is on cgroup version 1".to_owned());
    }
    if !ReserveBrake::is_there() {
        return Err("there is no /dev/oom_reserve".to_owned());
    }
    let name = format!("{}-reserve", cgroup::name_of_own_group());
    let memcg = cgroup::create_memcg(&hierarchy, &name).map_err(|e| format!("{e:#}"))?;
    let out = std::env::temp_dir().join(&name);
    let need = run_in(&memcg, &out);
    let _ = fs::remove_dir_all(&out);
    for _ in 0..100 {
        if memcg.remove().is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    need
}

fn run_in(memcg: &Memcg, out: &std::path::Path) -> Result<Need, String> {
    memcg.write("memory.max", &LIMIT_BYTES.to_string()).map_err(|e| format!("{e:#}"))?;
    let procs = fs::OpenOptions::new().write(true).open(memcg.dir().join("cgroup.procs")).map_err(|e| e.to_string())?;
    let own = "/proc/self/exe";
    let mut guardian = Command::new(own);
    guardian.args(["run", "--here", "--no-heap", "--on-oom", "kill", "--out"]).arg(out);
    guardian.args(["--", own, "eater"]).arg(THREADS.to_string());
    guardian.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: one system call, async-signal-safe; "0" is the writer itself.
    unsafe { guardian.pre_exec(move || nix::unistd::write(&procs, b"0").map(drop).map_err(Into::into)) };
    let output = guardian.output().map_err(|e| e.to_string())?;
    let store = Store::at(Some(out.to_owned()));
    let incidents = store.ids().unwrap_or_default().into_iter().filter_map(|id| store.load(Some(&id)).ok());
    let holds = incidents.filter_map(|(_, incident)| incident.hold);
    let used = |hold: &HoldReport| hold.kernel.as_ref().map_or(0, |kernel| kernel.reserve_used_bytes);
    let hold = holds
        .max_by_key(used)
        .ok_or_else(|| format!("no hold was recorded: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    Ok(Need::of(&hold, used(&hold)))
}

impl Need {
    /// Pages of files are charged to whoever reads them first: where somebody had, next to
    /// nothing was above the limit. So it is at least what the guardian had in memory that
    /// was not locked, files included.
    fn of(hold: &HoldReport, used_bytes: u64) -> Self {
        let had_bytes = hold.guardian_peak_bytes.saturating_sub(hold.guardian_locked_bytes);
        let enough_bytes = (used_bytes * MARGIN).max(had_bytes).max(LEAST_BYTES);
        Need { used_bytes, recommended_bytes: enough_bytes.next_multiple_of(1 << 20) }
    }
}

/// What fills the memcg: threads that touch page after page.
pub fn eat(threads: u32) {
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut hoard: Vec<Vec<u8>> = Vec::new();
                while hoard.len() < 4 * LIMIT_BYTES as usize / 65536 {
                    hoard.push(vec![1; 65536]);
                }
                std::hint::black_box(hoard);
            });
        }
    });
}
