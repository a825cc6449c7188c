//! Files for other tools, read back by what is not ours: OpenTelemetry's own messages, and
//! JSON as it is.

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::profiles::v1development::{ProfilesData, ProfilesDictionary};
use prost::Message;
use reprieve_flamegraph::diff::{self, Change};
use reprieve_flamegraph::{
    Frame, FrameKind, LabelValue, Mapping, Profile, RenderError, Sample, SampleType, Series, Spread, firefox, otlp,
    speedscope, svg,
};
use serde_json::Value;

const BIG: i64 = 5 << 32;

/// Two processes; in one of them inner was inlined into outer, with a guess beside.
fn heap() -> Profile {
    let mut p = Profile::new(vec![SampleType::new("inuse_space", "bytes"), SampleType::new("inuse_objects", "count")]);
    p.time_unix_nanos = 1_795_596_373_632_765_000;
    p.period = Some((SampleType::new("space", "bytes"), 524_288));
    p.comments.push("a comment".into());
    p.mappings.push(Mapping {
        start: 0x1000,
        end: 0x9000,
        file_offset: 0,
        path: "/opt/x/bin/server".into(),
        build_id: Some("0123456789abcdef0123456789abcdef01234567".into()),
    });
    let at = |name: &str, line, inlined| Frame {
        name: name.into(),
        file: Some("/src/x.c".into()),
        line: Some(line),
        address: Some(0x1234),
        mapping: Some(0),
        inlined,
        ..Frame::default()
    };
    let [server, worker] = ["server", "worker"].map(|name| p.frame(Frame::label(name)));
    let outer = p.frame(at("outer", 7, false));
    let inner = p.frame(at("inner<T>&", 3, true));
    let guess = p.frame(Frame { name: "maybe".into(), kind: FrameKind::Guessed, ..Frame::default() });
    for (pid, stack, bytes) in [
        (42, vec![server, outer, inner], BIG),
        (42, vec![server, outer, inner], 1),
        (42, vec![server, guess], 2),
        (43, vec![worker, outer], 5),
        (43, vec![worker, guess], 0),
    ] {
        p.samples.push(Sample {
            stack,
            values: vec![bytes, 1],
            spread: vec![Spread::new(1, 3), Spread::new(1, 1)],
            labels: vec![
                ("pid".into(), LabelValue::Number(pid, String::new())),
                ("witness".into(), LabelValue::Text("malloc".into())),
            ],
        });
    }
    p
}

fn series(profile: &Profile) -> [Series<'_>; 2] {
    [Series { title: "bytes", profile, sample_type: 0 }, Series { title: "objects", profile, sample_type: 1 }]
}

fn json(write: impl FnOnce(&mut Vec<u8>) -> Result<(), RenderError>) -> Value {
    let mut bytes = Vec::new();
    write(&mut bytes).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn speedscope_shares_frames_and_keeps_values() {
    let heap = heap();
    let file = json(|to| speedscope::write(&series(&heap), "an incident", "a program", to));
    let frames = file["shared"]["frames"].as_array().unwrap();
    let told: Vec<String> = frames.iter().map(ToString::to_string).collect();
    // Its place has fields of its own, and a guess is marked in the name.
    assert!(told.contains(&r#"{"file":"/src/x.c","line":3,"name":"inner<T>&"}"#.to_owned()), "{told:?}");
    assert!(told.contains(&r#"{"name":"maybe [guessed]"}"#.to_owned()) && frames.len() == 5, "{told:?}");
    let profiles = file["profiles"].as_array().unwrap();
    let ends: Vec<_> =
        profiles.iter().map(|p| (p["name"].as_str(), p["unit"].as_str(), p["endValue"].as_i64())).collect();
    assert_eq!(ends, [(Some("bytes"), Some("bytes"), Some(BIG + 8)), (Some("objects"), Some("none"), Some(5))]);
    for profile in profiles {
        let weights = profile["weights"].as_array().unwrap();
        assert_eq!(profile["samples"].as_array().unwrap().len(), weights.len());
        assert_eq!(weights.iter().map(|w| w.as_i64().unwrap()).sum::<i64>(), profile["endValue"].as_i64().unwrap());
    }
    // Equal stacks are one.
    assert_eq!(profiles[0]["samples"].as_array().unwrap().len(), 3);
}

#[test]
fn firefox_has_a_track_for_each_process() {
    let heap = heap();
    let file = json(|to| firefox::write(&series(&heap), "reprieve", to));
    let threads = file["threads"].as_array().unwrap();
    let names: Vec<_> =
        threads.iter().map(|t| format!("{} {} {}", t["pid"].as_str().unwrap(), t["processName"], t["name"])).collect();
    assert_eq!(
        names,
        [
            "42 \"server\" \"bytes\"",
            "43 \"worker\" \"bytes\"",
            "42 \"server\" \"objects\"",
            "43 \"worker\" \"objects\""
        ]
    );
    for thread in threads {
        // Every column is as long as its table says.
        for table in ["samples", "stackTable", "frameTable", "funcTable", "resourceTable", "nativeSymbols", "markers"] {
            let table = &thread[table];
            for (name, column) in table.as_object().unwrap() {
                let length = column.as_array().map_or_else(|| table["length"].as_u64(), |c| Some(c.len() as u64));
                assert_eq!(length, table["length"].as_u64(), "{name}");
            }
        }
    }
    // 5 GiB need more than 32 bits.
    let weights = threads[0]["samples"]["weight"].as_array().unwrap();
    assert_eq!(weights.iter().map(|w| w.as_i64().unwrap()).sum::<i64>(), BIG + 3);
    // A stack from its leaf: names, lines, and how deep it is inlined.
    let thread = &threads[0];
    let number = |value: &Value| value.as_u64().map(|n| n as usize);
    let (mut stack, mut path) = (number(&thread["samples"]["stack"][0]), Vec::new());
    while let Some(index) = stack {
        let frame = number(&thread["stackTable"]["frame"][index]).unwrap();
        let frames = &thread["frameTable"];
        let function = number(&frames["func"][frame]).unwrap();
        let name = number(&thread["funcTable"]["name"][function]).unwrap();
        let name = thread["stringArray"][name].as_str().unwrap();
        path.push(format!(
            "{name} {} {} {}",
            frames["line"][frame], frames["inlineDepth"][frame], frames["address"][frame]
        ));
        stack = number(&thread["stackTable"]["prefix"][index]);
    }
    assert_eq!(path, ["inner<T>& 3 1 564", "outer 7 0 564", "server null 0 -1"]);
    assert_eq!(file["libs"][0]["name"], "server");
}

/// The text at an index of the dictionary.
fn text(dictionary: &ProfilesDictionary, index: i32) -> &str {
    &dictionary.string_table[index as usize]
}

#[test]
fn opentelemetrys_own_types_read_what_we_write() {
    let heap = heap();
    let origin = otlp::Origin { scope: ("reprieve", "1"), resource: &[("host.name", "lab")] };
    let mut bytes = Vec::new();
    otlp::write(&series(&heap), origin, &mut bytes).unwrap();
    let data = ProfilesData::decode(&bytes[..]).unwrap();
    let dictionary = data.dictionary.as_ref().unwrap();
    // The first entry of each table is the one that stands for none.
    assert_eq!(dictionary.string_table[0], "");
    assert_eq!(dictionary.mapping_table[0], Default::default());
    assert_eq!(dictionary.location_table[0], Default::default());
    assert_eq!(dictionary.function_table[0], Default::default());
    assert_eq!(dictionary.link_table, [Default::default()]);
    assert_eq!(dictionary.attribute_table[0], Default::default());
    assert_eq!(dictionary.stack_table[0], Default::default());
    let of_resource = &data.resource_profiles[0].resource.as_ref().unwrap().attributes;
    assert_eq!(of_resource[0].key, "host.name");
    let scope = &data.resource_profiles[0].scope_profiles[0];
    assert_eq!(scope.scope.as_ref().unwrap().name, "reprieve");
    let [space, objects] = &scope.profiles[..] else { panic!("{} profiles", scope.profiles.len()) };
    let kind = space.sample_type.unwrap();
    assert_eq!((text(dictionary, kind.type_strindex), text(dictionary, kind.unit_strindex)), ("inuse_space", "bytes"));
    assert_eq!((space.time_unix_nano, space.period), (1_795_596_373_632_765_000, 524_288));
    assert_eq!((objects.period, objects.period_type), (0, None), "the period is one of bytes");
    // Two samples that differ in nothing but the value are one.
    let values: Vec<i64> = space.samples.iter().map(|sample| sample.values.iter().sum()).collect();
    assert_eq!(values, [BIG + 1, 2, 5]);
    let stack = &dictionary.stack_table[space.samples[0].stack_index as usize];
    let told: Vec<Vec<(&str, i64)>> = stack
        .location_indices
        .iter()
        .map(|&index| {
            let lines = &dictionary.location_table[index as usize].lines;
            let name = |function: i32| dictionary.function_table[function as usize].name_strindex;
            lines.iter().map(|line| (text(dictionary, name(line.function_index)), line.line)).collect()
        })
        .collect();
    assert_eq!(told, [vec![("inner<T>&", 3), ("outer", 7)], vec![("server", 0)]]);
    let location = &dictionary.location_table[stack.location_indices[0] as usize];
    let mapping = &dictionary.mapping_table[location.mapping_index as usize];
    assert_eq!((text(dictionary, mapping.filename_strindex), location.address), ("/opt/x/bin/server", 0x1234));
    let attributes = |indices: &[i32]| -> Vec<String> {
        let told = indices.iter().map(|&index| {
            let attribute = &dictionary.attribute_table[index as usize];
            let value = match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
                Any::StringValue(text) => text.clone(),
                Any::IntValue(number) => number.to_string(),
                other => panic!("{other:?}"),
            };
            format!("{}={value}{}", text(dictionary, attribute.key_strindex), text(dictionary, attribute.unit_strindex))
        });
        told.collect()
    };
    let of_sample = attributes(&space.samples[0].attribute_indices);
    assert_eq!(
        of_sample,
        ["process.pid=42", "reprieve.witness=malloc", "reprieve.sigma=3bytes", "reprieve.samples=1count"]
    );
    let id = "process.executable.build_id.gnu=0123456789abcdef0123456789abcdef01234567";
    assert_eq!(attributes(&mapping.attribute_indices), [id]);
    assert_eq!(attributes(&location.attribute_indices), ["profile.frame.type=native"]);
    // Nothing in a table is there twice.
    let mut strings = dictionary.string_table.clone();
    strings.sort();
    strings.dedup();
    assert_eq!(strings.len(), dictionary.string_table.len());
}

/// A stack of names, the first of them a heading, and its value.
fn of(stacks: &[(&[&str], i64)], line: u32) -> Profile {
    let mut p = Profile::new(vec![SampleType::new("inuse_space", "bytes")]);
    for (names, bytes) in stacks {
        let mut stack = vec![p.frame(Frame::label(names[0]))];
        for name in &names[1..] {
            let frame = Frame { name: (*name).into(), file: Some("a.c".into()), line: Some(line), ..Frame::default() };
            stack.push(p.frame(frame));
        }
        p.samples.push(Sample { stack, values: vec![*bytes], spread: vec![Spread::new(1, 4)], labels: Vec::new() });
    }
    p
}

#[test]
fn growth_is_told_by_name_whatever_the_line() {
    let before = of(&[(&["s", "main", "load"], 10), (&["s", "main", "gone"], 7), (&["s", "main", "same"], 3)], 1);
    let after = of(
        &[(&["s", "main", "load"], 30), (&["s", "main", "new", "main"], 5), (&["s", "main", "same"], 3)],
        // Every line has moved.
        2,
    );
    let [before, after] = [&before, &after].map(|profile| Series { title: "", profile, sample_type: 0 });
    let told: Vec<_> = diff::stacks(before, after)
        .into_iter()
        .map(|s| (s.frames.join(" "), s.change.growth(), s.change.before))
        .collect();
    assert_eq!(
        told,
        [
            ("load (a.c:2) main (a.c:2)".to_owned(), 20, 10),
            ("main (a.c:2) new (a.c:2) main (a.c:2)".to_owned(), 5, 0),
            ("gone (a.c:1) main (a.c:1)".to_owned(), -7, 7),
        ]
    );
    let functions: Vec<_> =
        diff::functions(before, after).into_iter().map(|f| (f.name, f.total.growth(), f.own.growth())).collect();
    let named = |name: &str, total, own| (name.to_owned(), total, own);
    // One that calls itself is counted once; a heading is none.
    assert_eq!(functions, [named("load", 20, 20), named("main", 18, 5), named("new", 5, 0), named("gone", -7, -7)]);
    let Change { before: was, after: is, spread } = diff::total(before, after);
    assert_eq!((was, is, spread), (20, 38, Spread { samples: 6, variance: 96.0 }));
    assert!(diff::stacks(before, before).is_empty() && diff::functions(after, after).is_empty());
}

#[test]
fn the_difference_is_drawn_in_colour() {
    let before = of(&[(&["s", "main", "load"], 10), (&["s", "main", "less;"], 7)], 1);
    let after = of(&[(&["s", "main", "load"], 30), (&["s", "main", "less;"], 2)], 2);
    let none = of(&[(&["s", "main"], 0)], 1);
    let [before, after, none] = [&before, &after, &none].map(|profile| Series { title: "", profile, sample_type: 0 });
    let text = svg::Text { title: "growth", subtitle: "of a test" };
    let draw = |a, b| {
        let mut image = Vec::new();
        diff::write_svg(a, b, text, &mut image).map(|()| String::from_utf8(image).unwrap())
    };
    let image = draw(before, after).unwrap();
    assert!(image.contains("load (30 bytes") && image.contains("less: (2 bytes"), "{image}");
    // Red is what grew, blue what shrank.
    let colour = |name: &str| {
        let rest = &image[image.find(&format!("<title>{name} (")).unwrap()..];
        let rgb = &rest[rest.find("fill=\"rgb(").unwrap() + 10..];
        rgb[..rgb.find(')').unwrap()].split(',').map(|c| c.trim().parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    assert!(colour("load")[0] > colour("load")[2] && colour("less:")[0] < colour("less:")[2], "{image}");
    assert_eq!(draw(before, after).unwrap(), image, "the same each time");
    assert!(matches!(draw(before, none), Err(RenderError::Empty)));
}

#[test]
fn one_sample_type_alone() {
    let heap = heap();
    let objects = heap.only(1);
    assert_eq!((objects.sample_types.len(), objects.total(0), objects.period.is_none()), (1, 5, true));
    // Where it has nothing, a sample is left out.
    assert_eq!((heap.only(0).samples.len(), heap.only(0).period.is_some()), (4, true));
    assert!(heap.only(9).sample_types.is_empty() && heap.only(9).samples.is_empty());
}
