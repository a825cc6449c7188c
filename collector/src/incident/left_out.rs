//! What was left out on purpose, for people: nobody is to take a heap that nobody looked at
//! for an empty one.

use super::model::{Incident, LeftOut, Part};

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
