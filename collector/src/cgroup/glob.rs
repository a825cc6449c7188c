//! Which cgroups: patterns over their paths.

use ::glob::{MatchOptions, Pattern};
use std::fmt;

/// A star stands for one name or a part of it, two for any number of names.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };
/// Any number of names.
const ANY: &str = "**";

/// A pattern over paths of cgroups, like `/system.slice/*.service`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    whole: Pattern,
    names: Vec<Pattern>,
}

impl Glob {
    /// Reads one; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("{text:?} does not begin with /; paths of cgroups do, below their mount"));
        }
        let pattern = |text: &str| Pattern::new(text).map_err(|error| format!("{text:?}: {}", error.msg));
        let names = text.split('/').filter(|name| !name.is_empty()).map(pattern).collect::<Result<_, _>>()?;
        Ok(Glob { whole: pattern(text)?, names })
    }

    /// Whether it matches the cgroup at this path. The root is none that can be guarded.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        path != "/" && self.whole.matches_with(path, OPTIONS)
    }

    /// Whether it matches this path, or may match one below it.
    #[must_use]
    pub fn may_lead_on(&self, path: &str) -> bool {
        let mut names = self.names.iter();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match names.next() {
                Some(pattern) if pattern.as_str() == ANY => return true,
                Some(pattern) if pattern.matches_with(name, OPTIONS) => {}
                _ => return false,
            }
        }
        true
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whole.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_name_and_two_are_many() {
        for (glob, path, matches) in [
            ("/docker/*", "/docker/abc", true),
            ("/docker/*", "/docker/abc/init", false),
            ("/docker/*", "/docker", false),
            ("/docker/**", "/docker/abc/init", true),
            ("/**/job-?", "/a/b/job-1", true),
            ("/system.slice/*.service", "/system.slice/redis.service", true),
            ("/system.slice/*.service", "/system.slice/x.scope", false),
            ("/**", "/", false),
            ("/*", "/.hidden", true),
        ] {
            assert_eq!(Glob::parse(glob).unwrap().matches(path), matches, "{glob} {path}");
        }
    }

    #[test]
    fn only_where_something_may_match_is_looked() {
        for (glob, path, may) in [
            ("/docker/*", "/", true),
            ("/docker/*", "/docker", true),
            ("/docker/*", "/docker/abc", true),
            ("/docker/*", "/docker/abc/x", false),
            ("/docker/*", "/other", false),
            ("/a/**/b", "/a/x/y/z", true),
            ("/**", "/x/y", true),
        ] {
            assert_eq!(Glob::parse(glob).unwrap().may_lead_on(path), may, "{glob} {path}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        assert!(Glob::parse("docker/*").unwrap_err().contains("begin with /"));
        assert!(Glob::parse("/a[").is_err() && Glob::parse("/a**").is_err());
    }
}
