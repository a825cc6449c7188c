//! The crate and the C header of the kernel series say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use reprieve_oom_uapi::{ABI, ATTACH, Attach, Decision, Event, Kind, MAGIC, Reason, STATE, Scope, VERDICT, Verdict};

const HEADER: &str = "include/uapi/linux/oom_reserve.h";

/// C expressions, and the values that the crate gives them.
type Expressions = BTreeMap<String, u64>;

/// Adds the size of a structure and the place and size of each of its fields.
macro_rules! structure {
    ($expressions:ident, $rust:ident, $c:literal, { $($field:ident: $c_field:literal),* $(,)? }) => {
        let mut covered = 0;
        $(
            let size = field_size(|value: &$rust| &value.$field);
            $expressions.insert(format!("sizeof(((struct {} *)0)->{})", $c, $c_field), size);
            $expressions.insert(
                format!("offsetof(struct {}, {})", $c, $c_field),
                offset_of!($rust, $field) as u64,
            );
            covered += size;
        )*
        $expressions.insert(format!("sizeof(struct {})", $c), size_of::<$rust>() as u64);
        // Without this, a field of the header that is missing here could hide in a hole.
        assert_eq!(covered, size_of::<$rust>() as u64, "{} has padding, or the test forgot a field", $c);
    };
}

fn field_size<T, F>(_: impl Fn(&T) -> &F) -> u64 {
    size_of::<F>() as u64
}

fn structures() -> Expressions {
    let mut expressions = Expressions::new();
    structure!(expressions, Attach, "oom_reserve_attach", {
        size: "size", flags: "flags", cgroup_fd: "cgroup_fd", abi: "abi", reserved: "reserved",
    });
    structure!(expressions, Event, "oom_reserve_event", {
        size: "size", kind: "type", flags: "flags", seq: "seq", cgroup_id: "cgroup_id",
        task_cgroup_id: "task_cgroup_id", attach_cgroup_id: "attach_cgroup_id", usage: "usage",
        limit: "limit", reserve: "reserve", used: "used", start_ns: "start_ns",
        deadline_ns: "deadline_ns", overrun: "overrun", gfp: "gfp", order: "order", pid: "pid",
        tid: "tid", parked: "parked", scope: "scope", reason: "reason", lost: "lost",
    });
    structure!(expressions, Verdict, "oom_reserve_verdict", {
        size: "size", verdict: "verdict", seq: "seq", fd: "fd", arg: "arg", reserved: "reserved",
    });
    expressions
}

/// All that the header defines, without the `OOM_RESERVE_` that each name begins with.
fn constants() -> Expressions {
    [
        ("ABI", ABI),
        ("IOC_MAGIC", MAGIC.into()),
        ("ATTACH", ATTACH),
        ("VERDICT", VERDICT),
        ("STATE", STATE),
        ("HELD", Kind::Held as u32),
        ("ENDED", Kind::Ended as u32),
        ("LOST", Kind::Lost as u32),
        ("USER_FAULT", Event::USER_FAULT.into()),
        ("KERNEL_CHARGE", Event::KERNEL_CHARGE.into()),
        ("SWAP_FULL", Event::SWAP_FULL.into()),
        ("NESTED", Event::NESTED.into()),
        ("HANDLER_INSIDE", Event::HANDLER_INSIDE.into()),
        ("MEMCG", Scope::Memcg as u32),
        ("SYSTEM", Scope::System as u32),
        ("MARGIN", Reason::Margin as u32),
        ("RETRY", Reason::Retry as u32),
        ("KILLED", Reason::Killed as u32),
        ("GAVE_UP", Reason::GaveUp as u32),
        ("TIMEOUT", Reason::Timeout as u32),
        ("HANDLER_GONE", Reason::HandlerGone as u32),
        ("EXHAUSTED", Reason::Exhausted as u32),
        ("OFFLINE", Reason::Offline as u32),
        ("VERDICT_RETRY", Decision::Retry as u32),
        ("VERDICT_KILL_TASK", Decision::KillTask as u32),
        ("VERDICT_KILL_CGROUP", Decision::KillCgroup as u32),
        ("VERDICT_GIVE_UP", Decision::GiveUp as u32),
        ("VERDICT_EXTEND", Decision::Extend as u32),
    ]
    .into_iter()
    .map(|(name, value)| (format!("OOM_RESERVE_{name}"), value.into()))
    .collect()
}

/// The header as the patches of the series make it, one after the other.
fn header() -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../patches/6.12").canonicalize().unwrap();
    let mut patches: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    patches.sort();

    let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oom-uapi-header");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).unwrap();
    let touched = format!("+++ b/{HEADER}\n");
    for patch in patches {
        let text = fs::read_to_string(&patch).unwrap_or_else(|error| panic!("{}: {error}", patch.display()));
        if text.contains(&touched) {
            // Of the tree it knows nothing but this file, and nothing of a repository around it.
            let output = Command::new("git")
                .args(["apply", "--include", HEADER])
                .arg(&patch)
                .current_dir(&tree)
                .env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap())
                .output()
                .expect("git runs");
            assert!(output.status.success(), "{}: {}", patch.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    fs::read_to_string(tree.join(HEADER)).unwrap_or_else(|error| panic!("no patch adds {HEADER}: {error}"))
}

/// The names that `header` gives a value, but for its guard.
fn defined(header: &str) -> BTreeSet<String> {
    header
        .lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let (name, value) = line.strip_prefix("#define ").unwrap_or(line).split_once(char::is_whitespace)?;
            let enumerator = value.trim_start().starts_with('=');
            let is_ours = name.starts_with("OOM_RESERVE_") && (line.starts_with("#define ") || enumerator);
            is_ours.then(|| name.to_owned())
        })
        .collect()
}

/// What C thinks each of `expressions` is.
fn evaluate<'a>(header: &str, expressions: impl Iterator<Item = &'a String>) -> Expressions {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oom-uapi");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("oom_reserve.h"), header).unwrap();

    let mut source =
        String::from("#include <stddef.h>\n#include <stdio.h>\n#include \"oom_reserve.h\"\nint main(void)\n{\n");
    for expression in expressions {
        writeln!(source, "\tprintf(\"%s\\t%llu\\n\", \"{expression}\", (unsigned long long)({expression}));").unwrap();
    }
    source.push_str("\treturn 0;\n}\n");
    fs::write(directory.join("print.c"), source).unwrap();

    let program = directory.join("print");
    let status = Command::new("cc")
        .arg("-I")
        .arg(&directory)
        .arg("-o")
        .args([&program, &directory.join("print.c")])
        .status()
        .expect("cc runs");
    assert!(status.success(), "cc: {status}");

    let output = Command::new(&program).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let (expression, value) = line.split_once('\t').unwrap();
            (expression.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn the_crate_agrees_with_the_header() {
    let header = header();
    let constants = constants();
    assert_eq!(
        constants.keys().cloned().collect::<BTreeSet<_>>(),
        defined(&header),
        "the crate (left) and the header (right) define different names"
    );

    let mut expected = structures();
    expected.extend(constants);
    let found = evaluate(&header, expected.keys());
    let differences: Vec<_> = expected
        .iter()
        .filter(|&(expression, value)| found.get(expression) != Some(value))
        .map(|(expression, value)| format!("{expression}: {value} here, {:?} in the header", found.get(expression)))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn requests_say_their_size() {
    assert_eq!(Attach::new(3), Attach { size: 32, flags: 0, cgroup_fd: 3, abi: 1, reserved: [0; 2] });
    let verdict = Verdict::extend(7, 250);
    assert_eq!(verdict, Verdict { size: 32, verdict: 5, seq: 7, fd: -1, arg: 250, reserved: 0 });
    assert_eq!(Verdict::kill_task(1, 9).fd, 9);
}

#[test]
fn a_record_is_made_of_bytes() {
    let mut bytes = [0; size_of::<Event>()];
    bytes[offset_of!(Event, kind)..][..2].copy_from_slice(&2_u16.to_ne_bytes());
    bytes[offset_of!(Event, reason)..][..4].copy_from_slice(&5_u32.to_ne_bytes());
    bytes[offset_of!(Event, lost)..][..4].copy_from_slice(&0xffff_ffff_u32.to_ne_bytes());
    let event = Event::from_bytes(bytes);
    assert_eq!((event.kind(), event.scope(), event.reason()), (Some(Kind::Ended), None, Some(Reason::Timeout)));
    assert_eq!(event.lost, u32::MAX);
    assert_eq!(Reason::from_raw(9), None);
}
