//! An incident, and everything that is made of one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve::incident::compare::Comparison;
use reprieve::incident::model::Incident;
use reprieve::incident::profile::{View, comparable_views, views, whole};
use reprieve::incident::read::parse_incident;
use reprieve::incident::redact::{Key, redact};
use reprieve::incident::select::Filter;
use reprieve::incident::summary::Summary;
use reprieve::incident::{markdown, report, show};
use reprieve_flamegraph::{RenderError, Series, diff, firefox, folded, otlp, pprof, speedscope, svg};
use std::path::Path;

const WIDTH: usize = 100;

fuzz_target!(|input: &[u8]| {
    let summary = Summary::parse(input);
    let Ok(incident) = parse_incident(input) else { return };
    let summary = summary.expect("an incident has what a list tells of it");
    assert_eq!((&summary.id, summary.trigger), (&incident.id, incident.trigger));
    assert!(summary.line(WIDTH).chars().count() <= WIDTH);
    let _ = (summary.json(Path::new("/x")), Filter::default().fits(&summary));

    // Written and read it is the same; JSON's way of fractions may cost the last bit of one.
    let written = serde_json::to_vec(&incident).expect("plain data");
    assert_eq!(whole_numbers(parse_incident(&written).expect("it is ours")), whole_numbers(incident.clone()));

    for sample_type in ["inuse_space", "alloc_objects"] {
        let page = show::page(&incident, Path::new("/x"), show::Layout { width: WIDTH, sample_type });
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page:?}");
    }
    let views = views(&incident);
    render(&incident, &views);

    let redacted = redact(incident.clone(), &Key::from_bytes(b"a key of some length"));
    assert_eq!(redacted.processes.len(), incident.processes.len());
    assert!(redacted.processes.iter().zip(&incident.processes).all(|(a, b)| a.memory == b.memory));
    assert!(redacted.processes.iter().all(|process| process.cmdline.is_none()));

    // Nothing grew since itself.
    for view in comparable_views(&incident) {
        for (sample_type, kind) in view.profile.sample_types.iter().enumerate() {
            let series = Series { title: &kind.kind, profile: &view.profile, sample_type };
            let pair =
                Comparison { before: (&incident, series), after: (&incident, series), sample_type: kind.kind.as_str() };
            assert!(pair.page(10, WIDTH).contains("nothing grew or shrank"));
            assert_eq!(pair.json(None)["total"]["growth"], 0);
            let text = svg::Text { title: "", subtitle: "" };
            may_be_empty(diff::write_svg(series, series, text, &mut Vec::new()));
        }
    }
});

fn whole_numbers(mut incident: Incident) -> Incident {
    incident.processes.iter_mut().for_each(|process| process.age_s = 0.0);
    incident
}

/// Every file that is made of one, as `export` and the analyst make them.
fn render(incident: &Incident, views: &[View]) {
    let titles: Vec<(&View, usize, String)> = views
        .iter()
        .flat_map(|view| (0..view.profile.sample_types.len()).map(move |i| (view, i, view.title_of(i))))
        .collect();
    let series: Vec<Series<'_>> = titles
        .iter()
        .map(|(view, sample_type, title)| Series { title, profile: &view.profile, sample_type: *sample_type })
        .collect();
    for view in views {
        for index in 0..view.profile.sample_types.len() {
            let mut image = Vec::new();
            let title = view.title_of(index);
            may_be_empty(svg::write(&view.profile, index, svg::Text { title: &title, subtitle: "" }, &mut image));
            assert!(std::str::from_utf8(&image).is_ok(), "SVG is text");
            let mut lines = Vec::new();
            may_be_empty(folded::write(&view.profile, index, &mut lines));
            let lines = String::from_utf8(lines).expect("lines are text");
            // `frame;frame VALUE`, and the values are all there is of a sample type.
            let values =
                lines.lines().map(|line| line.rsplit_once(' ').expect("a value").1.parse::<i64>().expect("a number"));
            let positive = |value: &&i64| **value > 0;
            let all: i64 = view.profile.samples.iter().filter_map(|s| s.values.get(index)).filter(positive).sum();
            assert_eq!(values.sum::<i64>(), all, "{}", view.name);
        }
    }
    let first: Vec<(&View, usize)> = views.iter().map(|view| (view, 0)).collect();
    assert!(markdown::page(incident, &first).ends_with('\n'));
    assert!(report::html(incident, views).contains("</html>"));
    may_be_empty(pprof::write(&whole(incident), &mut Vec::new()));
    may_be_empty(firefox::write(&series, "fuzz", &mut Vec::new()));
    may_be_empty(speedscope::write(&series, &incident.id, "fuzz", &mut Vec::new()));
    let origin = otlp::Origin { scope: ("fuzz", "0"), resource: &[("host.name", incident.host.name.as_str())] };
    may_be_empty(otlp::write(&series, origin, &mut Vec::new()));
}

fn may_be_empty(result: Result<(), RenderError>) {
    assert!(matches!(result, Ok(()) | Err(RenderError::Empty)), "{result:?}");
}
