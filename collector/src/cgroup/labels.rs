//! Which container and which pod a cgroup is, by its path.
//!
//! Nobody but the path is asked: it is there while everything is stopped, and says the
//! same on both versions of cgroups and after the container is gone.

use crate::incident::model::Labels;

/// Digits of a container's ID, as Docker, containerd, CRI-O and podman give it.
const ID_DIGITS: usize = 64;

/// What stands before the ID in a name, and who writes it. The longer one comes first.
///
/// Sources: moby daemon/oci_linux.go (`docker`), containerd
/// internal/cri/server/helpers.go (`cri-containerd`), CRI-O internal/config/cgmgr (`crio`),
/// podman libpod/container_internal_linux.go and libpod/define (`libpod`), nerdctl
/// pkg/cmd/container (`nerdctl`).
const PREFIXES: [(&str, &str); 6] = [
    ("cri-containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("docker", "docker"),
    ("crio", "cri-o"),
    ("libpod-payload", "podman"),
    ("libpod", "podman"),
];

/// Folders right above an ID without a prefix, and who makes them: Docker's default parent
/// under the cgroupfs driver, and containerd's namespaces.
const PARENTS: [(&str, &str); 3] = [("docker", "docker"), ("k8s.io", "containerd"), ("default", "containerd")];

/// Who runs containers, as [`Labels::container_runtime`] has it.
pub(super) const CONTAINER_RUNTIMES: [&str; 5] = ["docker", "containerd", "cri-o", "podman", "nomad"];

/// How names of units end that have a cgroup (systemd.unit(5), systemd.resource-control(5)).
pub(super) const UNIT_TYPES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// The units that a cgroup is in, the outermost first.
pub(super) fn units(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| UNIT_TYPES.iter().any(|ending| name.ends_with(ending)))
}

/// What the path of a cgroup says; of containers in containers, the innermost.
#[must_use]
pub fn labels(path: &str) -> Labels {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let container = (0..parts.len()).rev().find_map(|at| {
        let parent = at.checked_sub(1).map_or("", |above| parts[above]);
        container(parts[at], parent).or_else(|| allocation(parts[at], &parts[..at]))
    });
    let (container_id, runtime) = container.map_or((None, None), |(id, runtime)| (Some(id), runtime));
    Labels { container_runtime: runtime.map(str::to_owned), container_id, pod_uid: parts.iter().rev().find_map(pod) }
}

/// The container that a folder is named after, and who runs it.
fn container(name: &str, parent: &str) -> Option<(String, Option<&'static str>)> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // Under a cgroupfs driver that was given a path for systemd:
    // `PARENT.slice:cri-containerd:ID`.
    let (before, id) = name.rsplit_once(':').or_else(|| name.rsplit_once('-')).unwrap_or(("", name));
    if id.len() != ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let prefix = before.rsplit(':').next().unwrap_or_default();
    // `conmon` watches a container, and is in none; a podman pod's slice is no container.
    if prefix.ends_with("-conmon") || before.ends_with("_pod") {
        return None;
    }
    let of = |known: &[(&str, &'static str)], name: &str| known.iter().find(|(k, _)| *k == name).map(|(_, who)| *who);
    let runtime = if before.is_empty() { of(&PARENTS, parent) } else { of(&PREFIXES, prefix) };
    // A podman pod under the cgroupfs driver.
    (parent != "libpod_parent" || !before.is_empty()).then(|| (id.to_owned(), runtime))
}

/// A task of Nomad, whose folder is `ALLOCATION.TASK`, under systemd's names with `.scope`
/// (nomad client/lib/cgroupslib); anything of a UUID's form below `nomad` counts.
fn allocation(name: &str, above: &[&str]) -> Option<(String, Option<&'static str>)> {
    let is_nomad = above.iter().any(|part| matches!(*part, "nomad" | "nomad.slice"));
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let allocation = name.split('.').next().unwrap_or_default();
    (is_nomad && is_uuid(allocation)).then(|| (name.to_owned(), Some("nomad")))
}

/// The pod that a folder is named after.
///
/// The kubelet names it `pod<UID>`, and under systemd `kubepods-<class>-pod<UID with
/// _>.slice` (kubernetes pkg/kubelet/cm); a static pod's UID is 32 digits without any
/// dash. podman's slice is `machine-libpod_pod_<ID>.slice`.
fn pod(part: &&str) -> Option<String> {
    let part = part.split(':').next().unwrap_or_default();
    let part = part.strip_suffix(".slice").unwrap_or(part);
    if let Some((_, id)) = part.split_once("libpod_pod_") {
        return (id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned());
    }
    let uid = part.rsplit_once("pod").filter(|(before, _)| before.is_empty() || before.ends_with('-'))?.1;
    let uid = uid.replace('_', "-");
    let is_digits = uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_digits || is_uuid(&uid)).then_some(uid)
}

/// Digits and dashes as in RFC 9562.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "8d4ef63b9c6a0f0c38a3b6c1f8e0d9ab1f0c5a7d2b3e4f5061728394a5b6c7d8";
    const OTHER: &str = "1f0c5a7d2b3e4f5061728394a5b6c7d88d4ef63b9c6a0f0c38a3b6c1f8e0d9ab";
    const UID: &str = "6f8a3b2e-4c1d-4f6a-9b7e-2d5c8a1f0e34";
    const STATIC: &str = "3f6c1b8d9e0a4725b6c3d8e1f2a09b47";

    /// A path, and what it says: runtime, container, pod.
    type Told = (&'static str, Option<&'static str>, Option<&'static str>, Option<&'static str>);

    /// Paths as these programs make them.
    #[rustfmt::skip]
    const PATHS: &[Told] = &[
        // Docker: cgroupfs driver, systemd driver, rootless, with systemd inside, in Docker,
        // under --cgroup-parent.
        ("/docker/ID", Some("docker"), Some(ID), None),
        ("/system.slice/docker-ID.scope", Some("docker"), Some(ID), None),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope", Some("docker"), Some(ID), None),
        ("/system.slice/docker-ID.scope/system.slice/cron.service", Some("docker"), Some(ID), None),
        ("/docker/OTHER/docker/ID", Some("docker"), Some(ID), None),
        ("/docker/ID/init", Some("docker"), Some(ID), None),
        ("/batch/ID", None, Some(ID), None),
        ("/batch.slice/docker-ID.scope", Some("docker"), Some(ID), None),
        // containerd, by Kubernetes: cgroupfs, systemd, all classes, and a path for
        // systemd under cgroupfs.
        ("/kubepods/burstable/podUID/ID", None, Some(ID), Some(UID)),
        ("/kubepods/besteffort/podUID/ID", None, Some(ID), Some(UID)),
        ("/kubepods/podUID/ID", None, Some(ID), Some(UID)),
        ("/kubepods/burstable/podSTATIC/ID", None, Some(ID), Some(STATIC)),
        ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/cri-containerd-ID.scope", Some("containerd"), Some(ID), Some(UID)),
        ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_ID.slice/cri-containerd-ID.scope", Some("containerd"), Some(ID), Some(UID)),
        ("/kubepods.slice/kubepods-podU_ID.slice/cri-containerd-ID.scope", Some("containerd"), Some(ID), Some(UID)),
        ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSTATIC.slice/cri-containerd-ID.scope", Some("containerd"), Some(ID), Some(STATIC)),
        ("/system.slice/containerd.service/kubepods-burstable-podU_ID.slice:cri-containerd:ID", Some("containerd"), Some(ID), Some(UID)),
        ("/kubepods-besteffort-podU_ID.slice:cri-containerd:ID", Some("containerd"), Some(ID), Some(UID)),
        // A node of kind is itself a container.
        ("/docker/OTHER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podU_ID.slice/cri-containerd-ID.scope", Some("containerd"), Some(ID), Some(UID)),
        ("/docker/OTHER/kubelet/kubepods/besteffort/podUID/ID", None, Some(ID), Some(UID)),
        // The pod itself.
        ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice", None, None, Some(UID)),
        ("/kubepods/burstable/podUID", None, None, Some(UID)),
        // containerd by itself, and by nerdctl.
        ("/k8s.io/ID", Some("containerd"), Some(ID), None),
        ("/default/ID", Some("containerd"), Some(ID), None),
        ("/system.slice/nerdctl-ID.scope", Some("containerd"), Some(ID), None),
        // Docker as the kubelet's runtime.
        ("/kubepods.slice/kubepods-podU_ID.slice/docker-ID.scope", Some("docker"), Some(ID), Some(UID)),
        // CRI-O: cgroupfs, systemd, with the folder that crun makes, and its monitor.
        ("/kubepods/burstable/podUID/crio-ID", Some("cri-o"), Some(ID), Some(UID)),
        ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/crio-ID.scope", Some("cri-o"), Some(ID), Some(UID)),
        ("/kubepods.slice/kubepods-podU_ID.slice/crio-ID.scope/container", Some("cri-o"), Some(ID), Some(UID)),
        ("/kubepods.slice/kubepods-podU_ID.slice/crio-conmon-ID.scope", None, None, Some(UID)),
        // podman: systemd, rootless, in a pod, cgroupfs, as a service, and its monitor.
        ("/machine.slice/libpod-ID.scope", Some("podman"), Some(ID), None),
        ("/machine.slice/libpod-ID.scope/container", Some("podman"), Some(ID), None),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container", Some("podman"), Some(ID), None),
        ("/machine.slice/machine-libpod_pod_OTHER.slice/libpod-ID.scope", Some("podman"), Some(ID), Some(OTHER)),
        ("/machine.slice/machine-libpod_pod_OTHER.slice", None, None, Some(OTHER)),
        ("/libpod_parent/libpod-ID", Some("podman"), Some(ID), None),
        ("/libpod_parent/OTHER/libpod-ID", Some("podman"), Some(ID), None),
        ("/libpod_parent/OTHER", None, None, None),
        ("/system.slice/web.service/libpod-payload-ID", Some("podman"), Some(ID), None),
        ("/machine.slice/libpod-conmon-ID.scope", None, None, None),
        // Nomad: version 1, version 2 with and without reserved cores; its Docker driver.
        ("/nomad/UID.web", Some("nomad"), Some("UID.web"), None),
        ("/nomad/share/UID.web", Some("nomad"), Some("UID.web"), None),
        ("/nomad.slice/UID.web.scope", Some("nomad"), Some("UID.web"), None),
        ("/nomad.slice/share.slice/UID.web.scope", Some("nomad"), Some("UID.web"), None),
        ("/nomad.slice/reserve.slice/UID.my-task.scope", Some("nomad"), Some("UID.my-task"), None),
        ("/nomad.slice/share.slice/docker-ID.scope", Some("docker"), Some(ID), None),
        // None of these is a container.
        ("/", None, None, None),
        ("", None, None, None),
        ("/user.slice/user-1000.slice/session-2.scope", None, None, None),
        ("/system.slice/docker.service", None, None, None),
        ("/system.slice/podman.service", None, None, None),
        ("/user.slice/tripodSTATIC", None, None, None),
        ("/nomad.slice/share.slice", None, None, None),
        ("/elsewhere/UID.web", None, None, None),
        ("/kubepods.slice", None, None, None),
    ];

    fn filled(text: &str) -> String {
        // `U_ID` before `UID` before `ID`.
        text.replace("U_ID", &UID.replace('-', "_"))
            .replace("UID", UID)
            .replace("STATIC", STATIC)
            .replace("OTHER", OTHER)
            .replace("ID", ID)
    }

    #[test]
    fn paths_of_every_runtime_and_driver() {
        for (path, runtime, id, pod) in PATHS {
            let path = filled(path);
            // As with a cgroup namespace below it (cgroup_namespaces(7)).
            for path in [path.clone(), format!("/../..{path}")] {
                let labels = labels(&path);
                assert_eq!(labels.container_runtime.as_deref(), *runtime, "{path}");
                assert_eq!(labels.container_id, id.map(filled), "{path}");
                assert_eq!(labels.pod_uid.as_deref(), *pod, "{path}");
            }
        }
    }

    #[test]
    fn every_runtime_is_one_that_can_be_asked_for() {
        for (path, runtime, ..) in PATHS {
            assert!(runtime.is_none_or(|runtime| CONTAINER_RUNTIMES.contains(&runtime)), "{path}");
        }
    }

    #[test]
    fn the_same_paths_are_read_from_both_versions_of_proc_cgroup() {
        use crate::snapshot::process::memory_cgroup;
        for (path, ..) in PATHS.iter().filter(|(path, ..)| path.starts_with('/')) {
            let path = filled(path);
            let v1 = format!("12:cpu,cpuacct:/other\n5:memory:{path}\n0::/other\n");
            assert_eq!(labels(&memory_cgroup(&v1)), labels(&path));
            assert_eq!(labels(&memory_cgroup(&format!("0::{path}\n"))), labels(&path));
        }
    }
}
