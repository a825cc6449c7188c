//! Which parts of the evidence are taken.

use crate::incident::left_out::Part;

/// Some parts, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts(u8);

impl Parts {
    /// None of them: who is there, and how big.
    pub const NONE: Parts = Parts(0);

    /// What is taken where nobody says otherwise: all, but of command lines it has to be said.
    #[must_use]
    pub fn usual(with_cmdline: bool) -> Self {
        let is_usual = |part: &Part| *part != Part::Cmdline || with_cmdline;
        Part::ALL.into_iter().filter(is_usual).fold(Parts::NONE, Parts::with)
    }

    /// The same and this one.
    #[must_use]
    pub fn with(self, part: Part) -> Self {
        Parts(self.0 | 1 << part as u8)
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn has(self, part: Part) -> bool {
        self.0 & 1 << part as u8 != 0
    }

    /// Those of either.
    #[must_use]
    pub fn or(self, other: Parts) -> Self {
        Parts(self.0 | other.0)
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Part> {
        Part::ALL.into_iter().filter(move |part| self.has(*part))
    }
}

impl Default for Parts {
    fn default() -> Self {
        Parts::usual(false)
    }
}

/// What a configuration says is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collect {
    named: Parts,
    /// The usual ones as well.
    is_all: bool,
}

impl Collect {
    /// Reads words, each the name of a part or `all`.
    pub fn of<'t>(words: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let nothing = Collect { named: Parts::NONE, is_all: false };
        words.into_iter().try_fold(nothing, |collect, word| match word {
            "all" => Ok(Collect { is_all: true, ..collect }),
            _ => match Part::ALL.into_iter().find(|part| part.name() == word) {
                Some(part) => Ok(Collect { named: collect.named.with(part), ..collect }),
                None => Err(format!(
                    "{word:?} is no part of the evidence; write {}, all, or an empty list",
                    Part::ALL.map(Part::name).join(", ")
                )),
            },
        })
    }

    /// The parts, where those are the usual ones.
    #[must_use]
    pub fn parts(self, usual: Parts) -> Parts {
        if self.is_all { usual.or(self.named) } else { self.named }
    }

    /// The words.
    #[must_use]
    pub fn words(self) -> Vec<&'static str> {
        let all = self.is_all.then_some("all");
        all.into_iter().chain(self.named.iter().map(Part::name)).collect()
    }
}

impl Default for Collect {
    fn default() -> Self {
        Collect { named: Parts::NONE, is_all: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parts_and_all_is_what_is_usual() {
        let parts = |words: &[&str], with_cmdline| {
            let collect = Collect::of(words.iter().copied()).unwrap();
            assert_eq!(Collect::of(collect.words()), Ok(collect));
            collect.parts(Parts::usual(with_cmdline)).iter().map(Part::name).collect::<Vec<_>>()
        };
        assert_eq!(parts(&[], true), [""; 0]);
        assert_eq!(parts(&["accounting", "stacks"], true), ["stacks", "accounting"]);
        let usual = ["stacks", "heap", "malloc", "mappings", "growth", "accounting"];
        assert_eq!(parts(&["all"], false), usual);
        for (words, with_cmdline) in [(&["all"][..], true), (&["all", "cmdline"], false)] {
            assert_eq!(parts(words, with_cmdline), [&usual[..], &["cmdline"]].concat());
        }
        let error = Collect::of(["stacks", "heaps"]).unwrap_err();
        assert!(error.starts_with("\"heaps\" is no part of the evidence; write stacks, heap, "), "{error}");
    }
}
