//! How long tasks waited for memory: the kernel's pressure stall information (PSI).
//!
//! Source: Documentation/accounting/psi.rst; of a cgroup, `memory.pressure` in
//! Documentation/admin-guide/cgroup-v2.rst.

use super::{Memcg, Version};
use crate::incident::model::{Pressure, PressureScope};
use std::fs;
use std::path::Path;

/// That of the whole machine.
const MACHINE: &str = "/proc/pressure/memory";

/// That of the memcg where the kernel keeps it, on version 2; else of the machine. `None`
/// where neither is kept (CONFIG_PSI, `psi=0`).
#[must_use]
pub fn pressure(memcg: &Memcg) -> Option<Pressure> {
    of(memcg, Path::new(MACHINE))
}

fn of(memcg: &Memcg, machine: &Path) -> Option<Pressure> {
    let own = (memcg.version() == Version::V2).then(|| memcg.read("memory.pressure").ok()).flatten();
    let own = own.and_then(|text| parse(&text, PressureScope::Memcg));
    own.or_else(|| parse(&fs::read_to_string(machine).ok()?, PressureScope::Machine))
}

/// `some avg10=0.00 …`, then `full avg10=0.00 …`.
fn parse(text: &str, scope: PressureScope) -> Option<Pressure> {
    let average = |kind: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let number: f64 = line.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
        // JSON has no other numbers.
        number.is_finite().then_some(number)
    };
    Some(Pressure { scope, some_percent: average("some")?, full_percent: average("full")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    const OWN: &str =
        "some avg10=12.50 avg60=3.00 avg300=1.00 total=123\nfull avg10=7.25 avg60=2.00 avg300=0 total=99\n";
    const ALL: &str =
        "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=3\n";

    #[test]
    fn that_of_the_memcg_goes_before_that_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let machine = dir.path().join("machine");
        let told = |version| {
            let hierarchy = Hierarchy { version, mount: dir.path().to_owned(), own: "/".to_owned() };
            of(&Memcg::at(&hierarchy, "/job"), &machine)
        };
        fs::create_dir(dir.path().join("job")).unwrap();
        assert_eq!(told(Version::V2), None);
        fs::write(&machine, ALL).unwrap();
        let all = Pressure { scope: PressureScope::Machine, some_percent: 1.0, full_percent: 0.5 };
        assert_eq!(told(Version::V2), Some(all));
        fs::write(dir.path().join("job/memory.pressure"), OWN).unwrap();
        let own = Pressure { scope: PressureScope::Memcg, some_percent: 12.5, full_percent: 7.25 };
        assert_eq!((told(Version::V2), told(Version::V1)), (Some(own), Some(all)));
    }

    #[test]
    fn what_is_not_of_this_form_is_not_known() {
        for text in ["", "some avg10=1.00\n", "some avg10=x\nfull avg10=1\n", "some avg10=NaN\nfull avg10=1\n"] {
            assert_eq!(parse(text, PressureScope::Memcg), None, "{text:?}");
        }
    }
}
