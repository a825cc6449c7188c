//! From stacks of functions to stacks of return addresses.
//!
//! The runtime records one program counter for each function, also for those
//! that were inlined: the counter of an inlined function is a return address, and
//! its callers in the same machine frame have made-up ones behind the place of
//! the call (`tracebackPCs` in `runtime/traceback.go`, `gentraceback` before
//! 1.21). Symbols say by themselves what was inlined at a return address, so the
//! made-up ones go.

use reprieve_symbolizer::{GoImage, Svma};
use std::collections::HashMap;
use std::rc::Rc;

/// Entries of the runtime's tables that a process may cost.
const MAX_STEPS: u64 = 1 << 26;
/// `maxStack` before 1.23: no shorter stack was cut.
const MIN_CUT: usize = 32;
/// Where stacks begin.
const OUTERMOST: [&str; 4] = ["runtime.goexit", "runtime.mstart", "runtime.rt0_go", "runtime.cgocallback"];

/// A stack.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stack {
    /// Return addresses, innermost first.
    pub addresses: Vec<u64>,
    /// Whether the runtime recorded only its inner part.
    pub cut: bool,
}

/// What is known of a program counter.
#[derive(Debug)]
struct Counter {
    /// The innermost function there.
    name: String,
    /// Made-up counters of the callers that it was inlined into.
    callers: Vec<u64>,
}

/// Makes stacks of one module's code.
#[derive(Debug)]
pub struct Folder<'g> {
    go: &'g GoImage,
    bias: u64,
    known: HashMap<u64, Rc<Counter>>,
    steps: u64,
}

impl<'g> Folder<'g> {
    /// `bias` is the run-time address minus that in the file.
    #[must_use]
    pub fn new(go: &'g GoImage, bias: u64) -> Self {
        Folder { go, bias, known: HashMap::new(), steps: MAX_STEPS }
    }

    /// Whether it gave up on inlined functions, which may then be there twice.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.steps == 0
    }

    /// The stack that `counters` stand for. The runtime's own functions at the
    /// inner end and `runtime.goexit` at the outer one are left out, as
    /// `runtime/pprof` does.
    #[must_use]
    pub fn fold(&mut self, counters: &[u64]) -> Stack {
        let is_runtime = |name: &str| name.starts_with("runtime.") || name.starts_with("internal/runtime/");
        let inner = counters.iter().position(|&counter| !is_runtime(&self.look(counter).name)).unwrap_or(0);
        let outermost = counters.last().map(|&last| self.look(last));
        let outermost = outermost.as_ref().map_or("", |counter| &counter.name);
        let cut = counters.len() >= MIN_CUT && !OUTERMOST.iter().any(|name| outermost.starts_with(name));
        let outer = usize::from(outermost == "runtime.goexit" && counters.len() > inner + 1);
        let mut addresses = Vec::with_capacity(counters.len());
        let mut inlined: Option<(Rc<Counter>, usize)> = None;
        for &counter in &counters[inner..counters.len() - outer] {
            if let Some((of, from)) = &mut inlined
                && let Some(place) = of.callers[*from..].iter().position(|&caller| caller == counter)
            {
                // Wrappers between them are not recorded.
                *from += place + 1;
                continue;
            }
            addresses.push(counter);
            inlined = Some((self.look(counter), 0));
        }
        Stack { addresses, cut }
    }

    fn look(&mut self, counter: u64) -> Rc<Counter> {
        if let Some(known) = self.known.get(&counter) {
            return known.clone();
        }
        let address = counter.wrapping_sub(1).wrapping_sub(self.bias);
        let mut places = self.go.places(Svma(address), &mut self.steps).into_iter();
        let name = places.next().map(|place| place.function).unwrap_or_default();
        let callers = places.map(|place| place.address.0.wrapping_add(self.bias).wrapping_add(1)).collect();
        let found = Rc::new(Counter { name, callers });
        self.known.insert(counter, found.clone());
        found
    }
}
