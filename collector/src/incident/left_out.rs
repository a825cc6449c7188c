//! What was left out of the evidence on purpose, and that in words: nobody is to take a heap
//! that nobody looked at for an empty one.

use super::model::Incident;
use serde::{Deserialize, Serialize};

/// Evidence that was left out on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its parts.
    pub parts: Vec<Part>,
    /// Name of the rule that says so; `None` is what is configured beside the rules.
    pub rule: Option<String>,
}

/// A part of the evidence that need not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What threads run: their registers and stacks.
    Stacks,
    /// Who owns the heap, by stack.
    Heap,
    /// What malloc gave out and holds free, by its own books.
    Malloc,
    /// The biggest mappings of each process.
    Mappings,
    /// Who made processes grow, where page faults are sampled.
    Growth,
    /// What the memcg is charged for.
    Accounting,
    /// Command lines, which can hold secrets.
    Cmdline,
}

impl Part {
    /// All there are.
    pub const ALL: [Part; 7] =
        [Part::Stacks, Part::Heap, Part::Malloc, Part::Mappings, Part::Growth, Part::Accounting, Part::Cmdline];

    /// Its name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Part::Stacks => "stacks",
            Part::Heap => "heap",
            Part::Malloc => "malloc",
            Part::Mappings => "mappings",
            Part::Growth => "growth",
            Part::Accounting => "accounting",
            Part::Cmdline => "cmdline",
        }
    }
}

/// What was, and who says so; `None` where all was looked at.
#[must_use]
pub fn line(incident: &Incident) -> Option<String> {
    incident.left_out.as_ref().map(words)
}

/// The same of a choice.
#[must_use]
pub fn words(left_out: &LeftOut) -> String {
    let parts: Vec<&str> = left_out.parts.iter().copied().map(Part::name).collect();
    let by = match &left_out.rule {
        Some(rule) => format!("rule {rule:?}"),
        None => "what is configured beside the rules".to_owned(),
    };
    format!("{}, by {by}: nobody looked", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_it_is_told() {
        let (parts, rule) = (vec![Part::Heap, Part::Accounting], Some("vault".to_owned()));
        assert_eq!(
            words(&LeftOut { parts: parts.clone(), rule }),
            "heap, accounting, by rule \"vault\": nobody looked"
        );
        let told = words(&LeftOut { parts, rule: None });
        assert_eq!(told, "heap, accounting, by what is configured beside the rules: nobody looked");
    }
}
