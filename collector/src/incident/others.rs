//! Other killers of an incident, for people.

use super::model::Incident;
use super::units::count;
use crate::killers;

/// Who else kills for memory here, and whom somebody else has killed; `None` if nobody.
#[must_use]
pub fn line(incident: &Incident) -> Option<String> {
    let mut told = Vec::new();
    if !incident.other_victims.is_empty() {
        let each: Vec<String> =
            incident.other_victims.iter().map(|victim| format!("{} [{}]", victim.comm, victim.pid)).collect();
        told.push(format!("killed while held, by neither reprieve nor the kernel: {}", each.join(", ")));
    }
    if !incident.other_killers.is_empty() {
        let oomd: u64 = incident.other_killers.iter().filter_map(|killer| killer.kills_here).sum();
        let deeds =
            if oomd > 0 { format!(" (which has killed {} here)", count(oomd, "process")) } else { String::new() };
        told.push(format!("kills for memory, too: {}{deeds}", killers::told(&incident.other_killers)));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::model::{OtherKiller, OtherVictim};

    #[test]
    fn who_killed_and_who_may_have() {
        let text = include_str!("../../../fixtures/incidents/sort.json");
        let mut incident: Incident = serde_json::from_str(text).unwrap();
        assert_eq!(line(&incident), None);
        let killer = |name: &str, kills_here| OtherKiller { pid: 7, name: name.to_owned(), kills_here };
        incident.other_killers = vec![killer("earlyoom", None), killer("systemd-oomd", Some(2))];
        let told = "kills for memory, too: earlyoom [7], systemd-oomd [7] (which has killed 2 processes here)";
        assert_eq!(line(&incident).unwrap(), told);
        incident.other_victims = vec![OtherVictim { pid: 9, comm: "sort".to_owned() }];
        let victim = "killed while held, by neither reprieve nor the kernel: sort [9]; ";
        assert_eq!(line(&incident).unwrap(), format!("{victim}{told}"));
    }
}
