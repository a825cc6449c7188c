//! Profiles, and how people look at them.
//!
//! In goes a [`Profile`]: stacks of frames with one value per sample type. Out
//! come [`folded`] stacks, an SVG [`flame graph`](svg), files for [`pprof`],
//! [`speedscope`], the [`firefox`] profiler and OpenTelemetry ([`otlp`]), the [`top`]
//! of it, and the [`diff`]erence of two. The crate knows nothing of ELF, `/proc` or cgroups,
//! and does no input or output of its own: renderers write to what the caller gives.
//!
//! ```
//! use reprieve_flamegraph::{Frame, Profile, Sample, SampleType, folded};
//!
//! let mut profile = Profile::new(vec![SampleType::new("space", "bytes")]);
//! let main = profile.frame(Frame::named("main"));
//! let leak = profile.frame(Frame::named("leak"));
//! profile.samples.push(Sample { stack: vec![main, leak], values: vec![4096], ..Sample::default() });
//!
//! let mut text = Vec::new();
//! folded::write(&profile, 0, &mut text)?;
//! assert_eq!(text, b"main;leak 4096\n");
//! # Ok::<(), reprieve_flamegraph::RenderError>(())
//! ```

pub mod diff;
pub mod firefox;
pub mod folded;
pub mod otlp;
pub mod pprof;
mod profile;
pub mod speedscope;
pub mod svg;
pub mod top;
mod tree;

pub use profile::{Frame, FrameKind, LabelValue, Mapping, Profile, RenderError, Sample, SampleType, Series, Spread};
