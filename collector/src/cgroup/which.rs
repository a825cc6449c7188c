//! Which cgroups something is for: by their path, or by what they are.

use super::Glob;
use super::labels::{CONTAINER_RUNTIMES, UNIT_TYPES, is_uuid, labels, units};
use ::glob::Pattern;

/// What is said of cgroups; all of it has to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    cgroup: Option<Glob>,
    unit: Option<Pattern>,
    pod: Option<Pattern>,
    container: Option<Pattern>,
    runtime: Option<Pattern>,
}

impl Which {
    /// What may be said.
    pub const KEYS: [&str; 5] = ["cgroup", "unit", "pod", "container", "runtime"];

    /// Those whose path matches this pattern; the error says what is wrong with it.
    pub fn at(glob: &str) -> Result<Self, String> {
        Ok(Which { cgroup: Some(Glob::parse(glob)?), ..Which::default() })
    }

    /// Says more of them: one of [`Which::KEYS`], and a pattern.
    pub fn say(&mut self, key: &str, text: &str) -> Result<(), String> {
        match key {
            "cgroup" => self.cgroup = Some(Glob::parse(text)?),
            "unit" => self.unit = Some(unit(text)?),
            "pod" => self.pod = Some(pod(text)?),
            "container" => self.container = Some(container(text)?),
            "runtime" => self.runtime = Some(runtime(text)?),
            _ => return Err(format!("cgroups have {}, and no {key}", Which::KEYS.join(", "))),
        }
        Ok(())
    }

    /// Whether the cgroup at this path is one of them. What is below a unit, a pod or a
    /// container is in it. The root is none that can be guarded.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        path != "/"
            && self.cgroup.as_ref().is_none_or(|glob| glob.matches(path))
            && self.unit.as_ref().is_none_or(|unit| units(path).any(|name| unit.matches(name)))
            && self.matches_labels(path)
    }

    fn matches_labels(&self, path: &str) -> bool {
        let Which { pod, container, runtime, .. } = self;
        if pod.is_none() && container.is_none() && runtime.is_none() {
            // As mostly, and they take a while.
            return true;
        }
        let labels = labels(path);
        let is = |pattern: &Option<Pattern>, label: &Option<String>| {
            pattern.as_ref().is_none_or(|pattern| label.as_ref().is_some_and(|label| pattern.matches(label)))
        };
        is(pod, &labels.pod_uid) && is(container, &labels.container_id) && is(runtime, &labels.container_runtime)
    }

    /// What is said, key and pattern.
    #[must_use]
    pub fn said(&self) -> Vec<(&'static str, String)> {
        let text = |pattern: &Option<Pattern>| pattern.as_ref().map(|pattern| pattern.as_str().to_owned());
        let path = self.cgroup.as_ref().map(ToString::to_string);
        let texts = [path, text(&self.unit), text(&self.pod), text(&self.container), text(&self.runtime)];
        Self::KEYS.into_iter().zip(texts).filter_map(|(key, text)| Some((key, text?))).collect()
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|error| format!("{text:?}: {}", error.msg))
}

/// Whether it stands for several.
fn is_open(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

fn unit(text: &str) -> Result<Pattern, String> {
    let is_unit = UNIT_TYPES.iter().any(|ending| text.ends_with(ending));
    match is_unit || text.ends_with(['*', '?', ']']) {
        true => pattern(text),
        false => {
            Err(format!("{text:?} is no unit; write its whole name, like nginx.service, or a pattern, like nginx*"))
        }
    }
}

fn pod(text: &str) -> Result<Pattern, String> {
    let is_id = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    match is_id || is_open(text) {
        true => pattern(text),
        false => {
            Err(format!("{text:?} is no UID of a pod; `kubectl get pod NAME -o jsonpath='{{.metadata.uid}}'` tells it"))
        }
    }
}

fn container(text: &str) -> Result<Pattern, String> {
    let is_id = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // Of Nomad it is the allocation and the task.
    let is_task = text.split_once('.').is_some_and(|(allocation, _)| is_uuid(allocation));
    match is_id || is_task || is_open(text) {
        true => pattern(text),
        false => Err(format!(
            "{text:?} is no ID of a container; write its 64 digits, or the first with a star, like 8d4ef63b*"
        )),
    }
}

fn runtime(text: &str) -> Result<Pattern, String> {
    let pattern = pattern(text)?;
    match CONTAINER_RUNTIMES.iter().any(|runtime| pattern.matches(runtime)) {
        true => Ok(pattern),
        false => Err(format!("{text:?} is no runtime; known are {}", CONTAINER_RUNTIMES.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "6f8a3b2e-4c1d-4f6a-9b7e-2d5c8a1f0e34";
    const ID: &str = "8d4ef63b9c6a0f0c38a3b6c1f8e0d9ab1f0c5a7d2b3e4f5061728394a5b6c7d8";

    fn which(said: &[(&str, &str)]) -> Which {
        let mut which = Which::default();
        said.iter().for_each(|(key, text)| which.say(key, text).unwrap());
        which
    }

    #[test]
    fn by_what_it_is() {
        let nginx = "/system.slice/nginx.service";
        let inside = "/system.slice/nginx.service/worker";
        let in_pod = format!("/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{ID}.scope", POD.replace('-', "_"));
        let docker = format!("/docker/{ID}");
        for (said, path, matches) in [
            (("unit", "nginx.service"), nginx, true),
            (("unit", "nginx.service"), inside, true),
            (("unit", "nginx.service"), "/system.slice/nginx.service.d", false),
            (("unit", "nginx*"), nginx, true),
            (("unit", "*.service"), nginx, true),
            (("unit", "system.slice"), nginx, true),
            (("unit", "apache2.service"), nginx, false),
            (("unit", "worker*"), inside, false),
            (("pod", POD), &in_pod, true),
            (("pod", "6f8a3b2e-*"), &in_pod, true),
            (("pod", POD), &docker, false),
            (("container", ID), &in_pod, true),
            (("container", "8d4ef63b*"), &docker, true),
            (("container", "9*"), &docker, false),
            (("runtime", "containerd"), &in_pod, true),
            (("runtime", "containerd"), &docker, false),
            (("runtime", "*d*"), &docker, true),
            (("runtime", "*"), nginx, false),
            (("cgroup", "/docker/*"), &docker, true),
            (("cgroup", "/docker/*"), nginx, false),
        ] {
            assert_eq!(which(&[said]).matches(path), matches, "{said:?} {path}");
        }
        assert!(which(&[]).matches(nginx) && !which(&[]).matches("/"));
    }

    #[test]
    fn all_that_is_said_has_to_match() {
        let path = "/system.slice/nginx.service";
        let said = [("cgroup", "/system.slice/**"), ("unit", "nginx*")];
        assert!(which(&said).matches(path) && !which(&said).matches("/user.slice/nginx.service"));
        assert!(!which(&[said[0], said[1], ("runtime", "docker")]).matches(path));
        let told: Vec<_> = which(&said).said();
        assert_eq!(told, [("cgroup", "/system.slice/**".to_owned()), ("unit", "nginx*".to_owned())]);
        assert_eq!(Which::at("/system.slice/**"), Ok(which(&said[..1])));
    }

    #[test]
    fn what_could_never_match_is_told() {
        let error = |key, text| Which::default().say(key, text).unwrap_err();
        for (key, text, part) in [
            ("unit", "nginx", "like nginx.service"),
            ("unit", "", "no unit"),
            ("pod", "checkout-7d9f", "no UID of a pod"),
            ("pod", "", "no UID of a pod"),
            ("container", "web", "64 digits"),
            ("container", "8d4ef63b", "64 digits"),
            ("runtime", "rkt", "known are docker, containerd"),
            ("cgroup", "docker/*", "begin with /"),
            ("unit", "nginx[.service", "\"nginx[.service\": "),
            ("name", "x", "cgroups have cgroup, unit, pod, container, runtime, and no name"),
        ] {
            assert!(error(key, text).contains(part), "{key} {text:?}: {}", error(key, text));
        }
        assert!(Which::default().say("container", "6f8a3b2e-4c1d-4f6a-9b7e-2d5c8a1f0e34.web").is_ok());
    }
}
