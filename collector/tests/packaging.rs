//! The units, as systemd sees them, and the Debian package.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd");
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
/// Tenths of systemd-analyze's exposure that each unit may have, as docs/install.md says:
/// what is left is what a guard does (root, ptrace, cgroups, the kernel's log, real time).
const EXPOSURE: [(&str, u32); 2] = [("reprieve-guard.service", 39), ("reprieve-guard-live.service", 45)];

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn units_are_no_more_exposed_than_is_told() {
    let page = fs::read_to_string(format!("{DOCS}/install.md")).unwrap();
    for (unit, tenths) in EXPOSURE {
        let path = format!("{UNITS}/{unit}");
        let check = |threshold: u32| {
            let threshold = format!("--threshold={threshold}");
            run("systemd-analyze", &["security", "--offline=true", "--no-pager", &threshold, &path])
        };
        let output = check(tenths);
        assert!(output.status.success(), "{unit}: {}", said(&output));
        // Neither less: then the page is wrong.
        let output = check(tenths - 1);
        assert!(!output.status.success(), "{unit} is less exposed than is told: {}", said(&output));
        let told = format!("| `{unit}` | {}.{} |", tenths / 10, tenths % 10);
        assert!(page.contains(&told), "{told} is not in docs/install.md");
    }
}

/// The settings of a unit by their names.
fn settings(unit: &str) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(format!("{UNITS}/{unit}")).unwrap();
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '['])) {
        if let Some((name, value)) = line.split_once('=') {
            settings.entry(name.to_owned()).or_default().push(value.to_owned());
        }
    }
    settings
}

#[test]
fn the_looser_unit_has_one_capability_more_and_nothing_else_of_its_own() {
    let (strict, live) = (settings(EXPOSURE[0].0), settings(EXPOSURE[1].0));
    let capabilities = |unit: &BTreeMap<String, Vec<String>>| unit["CapabilityBoundingSet"][0].clone();
    assert_eq!(capabilities(&live), format!("{} CAP_PERFMON", capabilities(&strict)));
    let differs: Vec<&str> =
        strict.keys().filter(|name| strict.get(*name) != live.get(*name)).map(String::as_str).collect();
    let wanted = [
        "CapabilityBoundingSet",
        "Conflicts",
        "Description",
        "IPAddressAllow",
        "IPAddressDeny",
        "MemoryDenyWriteExecute",
        "PrivateTmp",
        "ProtectHome",
        "ProtectSystem",
    ];
    assert_eq!(differs, wanted);
    for unit in [&strict, &live] {
        let is = |name: &str, value: &str| assert_eq!(unit[name], [value], "{name}");
        is("Type", "notify");
        is("OOMScoreAdjust", "-1000");
        is("KillMode", "process");
        assert!(unit.contains_key("WatchdogSec") && unit.contains_key("MemoryMin"));
    }
}

/// The package that `cargo xtask deb` built.
fn deb() -> PathBuf {
    let deb = PathBuf::from(std::env::var("REPRIEVE_DEB").expect("REPRIEVE_DEB is not set; run `cargo xtask test`"));
    assert!(deb.is_file(), "{} is missing; run `cargo xtask deb`", deb.display());
    deb
}

/// The package, unpacked.
fn unpack() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let output = run("dpkg-deb", &["-x", deb().to_str().unwrap(), dir.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    dir
}

/// Everything in the package but folders: mode and owner by path.
fn contents() -> BTreeMap<String, String> {
    let output = run("dpkg-deb", &["-c", deb().to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields[5].trim_start_matches('.').to_owned(), format!("{} {}", fields[0], fields[1]))
    };
    text.lines().map(line).filter(|(path, _)| !path.ends_with('/')).collect()
}

#[test]
fn the_package_has_this_and_no_more() {
    let contents = contents();
    // cargo-deb writes no names of owners: of 0 dpkg makes root's.
    let (program, file) = ("-rwxr-xr-x 0/0", "-rw-r--r-- 0/0");
    let mut wanted: BTreeMap<String, &str> = [
        ("/usr/bin/reprieve", program),
        ("/usr/bin/reprieve-console", program),
        ("/usr/bin/reprieve-metrics", program),
        ("/etc/reprieve/reprieve.toml", file),
        ("/usr/lib/systemd/system/reprieve-guard.service", file),
        ("/usr/lib/systemd/system/reprieve-guard-live.service", file),
        ("/usr/share/bash-completion/completions/reprieve", file),
        ("/usr/share/zsh/vendor-completions/_reprieve", file),
        ("/usr/share/fish/vendor_completions.d/reprieve.fish", file),
        ("/usr/share/doc/reprieve/copyright", file),
        ("/usr/share/doc/reprieve/examples/reprieve.rules.yml", file),
    ]
    .map(|(path, mode)| (path.to_owned(), mode))
    .into();
    let commands = reprieve::cli::command();
    let pages =
        commands.get_subcommands().filter(|command| !command.is_hide_set()).map(|c| format!("-{}", c.get_name()));
    for page in std::iter::once(String::new()).chain(pages) {
        wanted.insert(format!("/usr/share/man/man1/reprieve{page}.1.gz"), file);
    }
    // Subcommands of subcommands have pages, too; documents come as they are, the long ones
    // compressed.
    let is_other = |path: &str| {
        let doc = path.strip_prefix("/usr/share/doc/reprieve/").filter(|name| !name.contains('/'));
        let is_doc = doc.is_some_and(|name| Path::new(DOCS).join(name.trim_end_matches(".gz")).is_file());
        let page = path.strip_prefix("/usr/share/man/man1/reprieve-").and_then(|name| name.strip_suffix(".1.gz"));
        is_doc || page.is_some_and(|page| page.contains('-'))
    };
    for (path, mode) in &wanted {
        assert_eq!(contents.get(path).map(String::as_str), Some(*mode), "{path} in {contents:#?}");
    }
    for (path, mode) in contents.iter().filter(|(path, _)| !wanted.contains_key(*path)) {
        assert!(is_other(path) && mode == file, "{path} {mode} is not expected");
    }
    for page in ["guard.md", "install.md", "metrics.md"] {
        let path = format!("/usr/share/doc/reprieve/{page}");
        assert!(contents.contains_key(&path) || contents.contains_key(&format!("{path}.gz")), "{page}");
    }
}

#[test]
fn the_package_says_what_it_needs_and_starts_nothing() {
    let field = |name: &str| {
        let output = run("dpkg-deb", &["-f", deb().to_str().unwrap(), name]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!((field("Package"), field("Section")), ("reprieve".to_owned(), "admin".to_owned()));
    assert!(field("Version").starts_with(env!("CARGO_PKG_VERSION")), "{}", field("Version"));
    assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
    let dir = tempfile::tempdir().unwrap();
    let output = run("dpkg-deb", &["-e", deb().to_str().unwrap(), dir.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    assert_eq!(read("conffiles"), "/etc/reprieve/reprieve.toml\n");
    let script = read("postinst");
    assert!(!script.contains("deb-systemd-invoke start"), "{script}");
    assert!(script.contains("reprieve-guard.service"), "{script}");
    for name in ["postinst", "prerm", "postrm"] {
        let output = run("sh", &["-n", dir.path().join(name).to_str().unwrap()]);
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
}

#[test]
fn what_is_in_the_package_works() {
    let dir = unpack();
    let at = |path: &str| dir.path().join(path).display().to_string();
    let output = run(&at("usr/bin/reprieve"), &["--config", &at("etc/reprieve"), "config", "check"]);
    assert!(output.status.success(), "{}", said(&output));
    let output = run(&at("usr/bin/reprieve-metrics"), &[]);
    assert!(said(&output).contains("it is `reprieve guard` that starts this program"), "{}", said(&output));
    // The units' program is there, and every setting is one that systemd knows.
    for (unit, _) in EXPOSURE {
        let unit = at(&format!("usr/lib/systemd/system/{unit}"));
        let text = fs::read_to_string(&unit).unwrap();
        let here = text.replace("/usr/bin/reprieve", &at("usr/bin/reprieve"));
        fs::write(&unit, here).unwrap();
        let output = run("systemd-analyze", &["verify", "--man=no", &unit]);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    }
    // A setting that it does not know would be told.
    let wrong = at("wrong.service");
    fs::write(&wrong, "[Service]\nExecStart=/bin/true\nProtectEverything=yes\n").unwrap();
    assert!(said(&run("systemd-analyze", &["verify", "--man=no", &wrong])).contains("ProtectEverything"));
}

#[test]
fn pages_and_completions_are_read_by_their_readers() {
    let dir = unpack();
    let at = |path: &str| dir.path().join(path).display().to_string();
    for page in ["reprieve", "reprieve-guard", "reprieve-run"] {
        let mut man = Command::new("man");
        man.args(["--warnings", "-l"]).arg(at(&format!("usr/share/man/man1/{page}.1.gz")));
        let output = man.env("MANWIDTH", "80").env("MANPAGER", "cat").env("LC_ALL", "C.UTF-8").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{page}: {}", said(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("NAME") && text.contains("SYNOPSIS"), "{page}: {text}");
    }
    // What bash would offer after `reprieve gu`.
    let script = "source \"$1\"; COMP_WORDS=(reprieve gu); COMP_CWORD=1; _reprieve reprieve gu reprieve; echo \"${COMPREPLY[@]}\"";
    let output = run("bash", &["-c", script, "bash", &at("usr/share/bash-completion/completions/reprieve")]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "guard", "{}", said(&output));
}
