//! The script the guest starts with: `init.sh`, and before it what is special
//! about one run.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Cgroup, GuestSpec};

/// Where programs are, for a command whose environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The script for `spec`; it writes `marker` before the exit status.
pub(super) fn script(spec: &GuestSpec, marker: &str) -> Result<String> {
    if spec.command.is_empty() {
        bail!("there is no command to run in the guest");
    }
    let Some(cwd) = spec.cwd.to_str() else {
        bail!("{}: a guest's directory must be valid UTF-8", spec.cwd.display());
    };
    let mut env = spec.env.clone();
    for (name, value) in [("PATH", PATH), ("HOME", "/root")] {
        if !env.iter().any(|(present, _)| present == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    // env(1) sets any name, unlike the shell, and exec makes the command's
    // signal the subshell's own, so that the status is right.
    let mut words = vec!["exec".to_owned(), "env".to_owned(), "-i".to_owned()];
    for (name, value) in &env {
        if name.is_empty() || name.contains('=') {
            bail!("{name:?} is no name of an environment variable");
        }
        words.push(quote(&format!("{name}={value}"))?);
    }
    words.extend(spec.command.iter().map(|word| quote(word)).collect::<Result<Vec<_>>>()?);
    let cgroup = match spec.cgroup {
        Cgroup::V1 => "v1",
        Cgroup::V2 => "v2",
    };
    let (interpreter, body) = include_str!("init.sh").split_once('\n').unwrap_or_default();
    Ok(format!(
        "{interpreter}\nmarker={}\ncgroup={cgroup}\nkeep_tmp={}\nguest_command() {{\ncd {} || exit 126\n{}\n}}\n{body}",
        quote(marker)?,
        if needs_host_tmp(spec) { "yes" } else { "no" },
        quote(cwd)?,
        words.join(" "),
    ))
}

/// Whether the command names a file of the host's /tmp: a fresh tmpfs there
/// would hide it. Writes stay in the guest either way.
fn needs_host_tmp(spec: &GuestSpec) -> bool {
    let below = |text: &str| text.contains("/tmp/");
    spec.cwd.starts_with(Path::new("/tmp"))
        || spec.command.iter().any(|word| below(word))
        || spec.env.iter().any(|(_, value)| below(value))
}

/// `text` as one word of the shell's.
fn quote(text: &str) -> Result<String> {
    if text.contains('\0') {
        bail!("{text:?}: a guest's command and environment cannot hold a zero byte");
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::super::Flavor;
    use super::*;

    fn spec(command: &[&str], cwd: &str) -> GuestSpec {
        GuestSpec {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            cwd: cwd.into(),
            memory_mib: 512,
            cpus: 1,
            timeout: Duration::from_secs(1),
            cgroup: Cgroup::V2,
            kernel: Flavor::Stock,
            terminal: false,
        }
    }

    #[test]
    fn the_shell_reads_words_as_they_were() {
        for text in ["", "a b", "it's", "$HOME `id` \\ \" \n *", "''"] {
            let script = format!("printf %s {}", quote(text).unwrap());
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }

    #[test]
    fn the_shell_accepts_the_script() {
        let script = script(&spec(&["echo", "it's"], "/"), "\u{1e}end:").unwrap();
        assert!(script.starts_with("#!/bin/sh\n"));
        let status = Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
        assert!(status.success(), "{script}");
    }

    #[test]
    fn tmp_is_kept_for_those_who_need_it() {
        assert!(needs_host_tmp(&spec(&["/tmp/target/test"], "/")));
        assert!(needs_host_tmp(&spec(&["true"], "/tmp/work")));
        assert!(!needs_host_tmp(&spec(&["true"], "/root")));
    }
}
