//! Each rendering is read back and compared with what went in.

use flate2::read::GzDecoder;
use prost::Message;
use reprieve_flamegraph::pprof::proto;
use reprieve_flamegraph::{
    Frame, FrameKind, LabelValue, Mapping, Profile, RenderError, Sample, SampleType, Spread, folded, pprof, svg, top,
};
use std::io::Read;

const BIG: i64 = 5 << 32;

/// main calls outer, into which inner was inlined; hostile names beside.
fn sample_profile() -> Profile {
    let mut p = Profile::new(vec![SampleType::new("space", "bytes")]);
    p.mappings.push(Mapping {
        start: 0x1000,
        end: 0x2000,
        file_offset: 0,
        path: "/bin/x".into(),
        build_id: Some("abcd".into()),
    });
    let process = p.frame(Frame::label("victim;<script>\n"));
    let at = |name: &str, line, inlined| Frame {
        name: name.into(),
        file: Some("/src/x.c".into()),
        line: Some(line),
        address: Some(0x1234),
        mapping: Some(0),
        inlined,
        kind: FrameKind::Function,
    };
    let outer = p.frame(at("outer", 7, false));
    let inner = p.frame(at("inner<T>&", 3, true));
    let guess = p.frame(Frame { name: "maybe".into(), kind: FrameKind::Guessed, ..Frame::default() });
    for (stack, value) in
        [(vec![process, outer, inner], BIG), (vec![process, outer, inner], 1), (vec![process, guess], 2)]
    {
        p.samples.push(Sample {
            stack,
            values: vec![value],
            spread: vec![Spread::new(1, 3)],
            labels: vec![("pid".into(), LabelValue::Number(42, String::new()))],
        });
    }
    p
}

#[test]
fn folded_lines_merge_and_stay_lines() {
    let mut text = Vec::new();
    folded::write(&sample_profile(), 0, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let expected =
        format!("victim:<script>:;maybe [guessed] 2\nvictim:<script>:;outer (x.c:7);inner<T>& (x.c:3) {}\n", BIG + 1);
    assert_eq!(text, expected);
}

#[test]
fn pprof_keeps_values_inlines_and_build_ids() {
    let mut bytes = Vec::new();
    pprof::write(&sample_profile(), &mut bytes).unwrap();
    let mut raw = Vec::new();
    GzDecoder::new(&bytes[..]).read_to_end(&mut raw).unwrap();
    let p = proto::Profile::decode(&raw[..]).unwrap();
    let text = |i: i64| p.string_table[i as usize].as_str();
    assert_eq!(text(0), "");
    assert_eq!((text(p.sample_type[0].r#type), text(p.sample_type[0].unit)), ("space", "bytes"));
    assert_eq!(p.sample.iter().map(|s| s.value[0]).sum::<i64>(), BIG + 3);
    assert_eq!(text(p.mapping[0].build_id), "abcd");
    // Leaf first: inner and outer share a location, the process is the root.
    let locations: Vec<&proto::Location> =
        p.sample[0].location_id.iter().map(|&id| &p.location[id as usize - 1]).collect();
    let lines: Vec<Vec<(&str, i64)>> = locations
        .iter()
        .map(|l| l.line.iter().map(|l| (text(p.function[l.function_id as usize - 1].name), l.line)).collect())
        .collect();
    assert_eq!(lines, [vec![("inner<T>&", 3), ("outer", 7)], vec![("victim;<script>\n", 0)]]);
    assert_eq!((locations[0].address, locations[0].mapping_id), (0x1234, 1));
    let labels: Vec<_> = p.sample[0].label.iter().map(|l| (text(l.key), l.num)).collect();
    assert_eq!(labels, [("pid", 42), ("space_sigma", 3), ("space_samples", 1)]);
}

#[test]
fn svg_is_escaped_and_needs_no_network() {
    let mut bytes = Vec::new();
    svg::write(&sample_profile(), 0, svg::Text { title: "a < b", subtitle: "" }, &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("outer (x.c:7)") && text.contains("inner&lt;T&gt;&amp; (x.c:3)"), "{text}");
    assert!(text.contains("a &lt; b") && !text.contains("<script>:"));
    // Name spaces and credits are names, not addresses to fetch.
    for fetch in ["href=\"http", "src=\"http", "url(http", "@import"] {
        assert!(!text.contains(fetch), "{fetch}");
    }
}

#[test]
fn deep_and_many() {
    let mut p = Profile::new(vec![SampleType::new("threads", "count")]);
    let frames: Vec<usize> = (0..4096).map(|i| p.frame(Frame::named(&format!("f{i}")))).collect();
    for i in 0..20_000 {
        p.samples.push(Sample { stack: frames[..1 + i % 7].to_vec(), values: vec![1], ..Sample::default() });
    }
    p.samples.push(Sample { stack: frames, values: vec![1], ..Sample::default() });
    let mut out = Vec::new();
    svg::write(&p, 0, svg::Text { title: "t", subtitle: "s" }, &mut out).unwrap();
    assert_eq!(p.total(0), 20_001);
    assert_eq!(top::stacks(&p, 0, 100).iter().map(|s| s.value).sum::<i64>(), 20_001);
}

#[test]
fn nothing_to_draw_is_said() {
    let p = Profile::new(vec![SampleType::new("threads", "count")]);
    let text = svg::Text { title: "t", subtitle: "" };
    assert!(matches!(svg::write(&p, 0, text, Vec::new()), Err(RenderError::Empty)));
    assert!(matches!(folded::write(&p, 1, Vec::new()), Err(RenderError::NoSampleType(1))));
    assert!(top::stacks(&p, 0, 5).is_empty());
}

#[test]
fn top_names_the_biggest_stack_with_its_place() {
    let top = top::stacks(&sample_profile(), 0, 1);
    assert_eq!(top[0].frames, ["inner<T>& (x.c:3)", "outer (x.c:7)"]);
    assert_eq!(top[0].value, BIG + 1);
    assert!(top[0].share > 0.99 && top[0].labels.len() == 1);
    // Two samples of sigma 3 each.
    assert_eq!(top[0].spread, Spread { samples: 2, variance: 18.0 });
}

#[test]
fn one_profile_of_two_keeps_both() {
    let mut whole = sample_profile();
    let mut threads = Profile::new(vec![SampleType::new("threads", "count")]);
    let process = threads.frame(Frame::label("victim;<script>\n"));
    threads.mappings.push(Mapping { path: "/bin/y".into(), ..sample_profile().mappings[0].clone() });
    threads.mappings.push(sample_profile().mappings[0].clone());
    let run = threads.frame(Frame { name: "run".into(), mapping: Some(1), ..Frame::default() });
    threads.samples.push(Sample { stack: vec![process, run], values: vec![3], ..Sample::default() });
    whole.append(&threads);
    assert_eq!(whole.find("threads"), Some(1));
    assert_eq!((whole.total(0), whole.total(1)), (BIG + 3, 3));
    assert!(whole.samples.iter().all(|s| s.values.len() == 2));
    let added = whole.samples.last().unwrap();
    assert_eq!(added.stack[0], whole.samples[0].stack[0], "the same frame is there once");
    let run = &whole.frames[added.stack[1]];
    assert_eq!(whole.mappings[run.mapping.unwrap()].path, "/bin/x");
    let mut bytes = Vec::new();
    pprof::write(&whole, &mut bytes).unwrap();
}

#[test]
fn an_interpreters_frames_tell_stacks_apart() {
    let mut p = Profile::new(vec![SampleType::new("space", "bytes")]);
    let native = p.frame(Frame::named("eval"));
    let script = p.frame(Frame { name: "load".into(), kind: FrameKind::Script, ..Frame::default() });
    let leaves = ["new_list", "new_dict"].map(|name| p.frame(Frame::named(name)));
    for leaf in leaves {
        p.samples.push(Sample { stack: vec![native, script, leaf], values: vec![2], ..Sample::default() });
    }
    p.samples.push(Sample { stack: vec![native, leaves[0]], values: vec![3], ..Sample::default() });
    let top = top::stacks(&p, 0, 5);
    let top: Vec<_> = top.iter().map(|s| (s.value, s.frames.join(" "))).collect();
    assert_eq!(top, [(4, "load".to_owned()), (3, "new_list eval".to_owned())]);
}

#[test]
fn the_kernels_frames_are_marked_and_tell_the_system_call_alone() {
    let mut p = Profile::new(vec![SampleType::new("growth", "bytes")]);
    let user = p.frame(Frame::named("load_file"));
    let kernel = |name: &str| Frame { name: name.into(), kind: FrameKind::Kernel, ..Frame::default() };
    let [read, copy, zero] = ["ksys_read", "copy_page_to_iter", "clear_user [zero]"].map(|name| p.frame(kernel(name)));
    for (stack, value) in [(vec![user, read, copy], 2), (vec![user, read, zero], 3), (vec![user], 4)] {
        p.samples.push(Sample { stack, values: vec![value], ..Sample::default() });
    }
    let mut lines = Vec::new();
    folded::write(&p, 0, &mut lines).unwrap();
    let expected = "load_file 4\nload_file;ksys_read_[k];clear_user [zero]_[k] 3\n\
        load_file;ksys_read_[k];copy_page_to_iter_[k] 2\n";
    assert_eq!(String::from_utf8(lines).unwrap(), expected);
    let top: Vec<_> = top::stacks(&p, 0, 5).iter().map(|s| (s.value, s.frames.join(" "))).collect();
    assert_eq!(top, [(5, "ksys_read_[k] load_file".to_owned()), (4, "load_file".to_owned())]);
    // Where an interpreter runs, its lines tell.
    let line = p.frame(Frame { name: "load".into(), kind: FrameKind::Script, ..Frame::default() });
    p.samples.push(Sample { stack: vec![user, line, user, read, copy], values: vec![9], ..Sample::default() });
    assert_eq!(top::stacks(&p, 0, 1)[0].frames, ["load"]);
}
