//! What grew from one incident to another, for a terminal and for a script.

use super::model::Incident;
use super::show::{fit, headline};
use super::units::{bytes, grouped, micros};
use reprieve_flamegraph::diff::{self, Change, FunctionChange, StackChange};
use reprieve_flamegraph::{SampleType, Series};
use serde_json::{Value, json};

/// Frames shown of each stack.
const FRAMES: usize = 8;

/// Two incidents by one sample type.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The earlier, or what the other is compared with.
    pub before: (&'a Incident, Series<'a>),
    /// The other.
    pub after: (&'a Incident, Series<'a>),
    /// By what they are compared, like `inuse_space`.
    pub sample_type: &'a str,
}

impl Comparison<'_> {
    fn kind(&self) -> Option<&SampleType> {
        let (_, series) = &self.after;
        series.profile.sample_types.get(series.sample_type)
    }

    fn stacks(&self) -> Vec<StackChange> {
        diff::stacks(self.before.1, self.after.1)
    }

    fn functions(&self) -> Vec<FunctionChange> {
        diff::functions(self.before.1, self.after.1)
    }

    /// Bytes as people read them; others are counted.
    fn say(&self, value: u64) -> String {
        if self.kind().is_some_and(|kind| kind.unit == "bytes") { bytes(value) } else { grouped(value) }
    }

    /// `+360 MiB`.
    fn growth(&self, change: &Change) -> String {
        let sign = if change.growth() < 0 { '-' } else { '+' };
        format!("{sign}{}", self.say(change.growth().unsigned_abs()))
    }

    /// `+360 MiB ± 2 MiB (10 MiB, then 370 MiB)`.
    fn change(&self, change: &Change) -> String {
        let error = match change.spread.samples {
            0 => String::new(),
            _ => format!(" ± {}", self.say(change.spread.sigma() as u64)),
        };
        let side = |value: i64| self.say(value.unsigned_abs());
        format!("{}{error} ({}, then {})", self.growth(change), side(change.before), side(change.after))
    }

    /// What grew most, at most `most` of each, for a terminal so wide.
    #[must_use]
    pub fn page(&self, most: usize, width: usize) -> String {
        let mut page = String::new();
        let mut row = |text: &str| page.push_str(&(fit(text, width) + "\n"));
        for (name, incident) in [("before", self.before.0), ("after ", self.after.0)] {
            row(&format!("{name}  {}  {}", incident.id, headline(incident)));
        }
        let (first, second) = (self.before.0.time_unix_us, self.after.0.time_unix_us);
        let apart = match second.checked_sub(first) {
            Some(later) => format!(" in {}", micros(later)),
            None => format!("; the second is {} older", micros(first - second)),
        };
        row("");
        row(&format!("{}: {}{apart}", self.sample_type, self.change(&diff::total(self.before.1, self.after.1))));
        let stacks = self.stacks();
        if stacks.is_empty() {
            row("nothing grew or shrank");
            return page;
        }
        row("");
        row("BY STACK");
        for stack in stacks.iter().take(most) {
            row(&format!("  {}  {}", self.change(&stack.change), stack.labels.join(" ")));
            stack.frames.iter().take(FRAMES).for_each(|frame| row(&format!("      {frame}")));
            if stack.frames.len() > FRAMES {
                row(&format!("      … and {} more", stack.frames.len() - FRAMES));
            }
        }
        if stacks.len() > most {
            row(&format!("  and {} more", stacks.len() - most));
        }
        let functions = self.functions();
        if functions.is_empty() {
            return page;
        }
        row("");
        row("BY FUNCTION  (with what it calls, and itself)");
        for function in functions.iter().take(most) {
            let (total, own) = (self.growth(&function.total), self.growth(&function.own));
            row(&format!("  {total:>11} {own:>11}  {}", function.name));
        }
        if functions.len() > most {
            row(&format!("  and {} more", functions.len() - most));
        }
        page
    }

    /// The same for a script; everything without `most`.
    #[must_use]
    pub fn json(&self, most: Option<usize>) -> Value {
        let most = most.unwrap_or(usize::MAX);
        let side = |incident: &Incident| json!({"id": incident.id, "time_unix_us": incident.time_unix_us});
        let stacks: Vec<Value> = self
            .stacks()
            .iter()
            .take(most)
            .map(|stack| with(&stack.change, json!({"labels": stack.labels, "frames": stack.frames})))
            .collect();
        let functions: Vec<Value> = self
            .functions()
            .iter()
            .take(most)
            .map(|f| json!({"name": f.name, "total": with(&f.total, json!({})), "own": with(&f.own, json!({}))}))
            .collect();
        json!({
            "before": side(self.before.0),
            "after": side(self.after.0),
            "sample_type": self.sample_type,
            "unit": self.kind().map(|kind| &kind.unit),
            "total": with(&diff::total(self.before.1, self.after.1), json!({})),
            "stacks": stacks,
            "functions": functions,
        })
    }
}

fn with(change: &Change, mut object: Value) -> Value {
    object["before"] = change.before.into();
    object["after"] = change.after.into();
    object["growth"] = change.growth().into();
    // Exact values have none.
    object["sigma"] = (change.spread.samples > 0).then(|| change.spread.sigma().round() as u64).into();
    object
}
