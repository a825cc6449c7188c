//! Who was killed in a hold by somebody else.

use super::Scene;
use super::kill::has_ended;
use crate::incident::model::{OtherVictim, StopOutcome};

impl Scene<'_> {
    /// Notes who has died though all of its threads were stopped: then somebody has killed
    /// it, and if neither the kernel nor a program of the operator's, another killer or a
    /// person by hand.
    pub(super) fn note_others(&mut self) {
        if self.threads.is_none() || self.was_helped || self.memcg.kernel_kills().ok() != self.kernel_kills {
            return;
        }
        for process in self.processes {
            let was_stopped = process.threads.iter().all(|thread| thread.stop == StopOutcome::Stopped);
            let is_dead = has_ended(process.pid, process.start_ticks);
            let is_known = self.other_victims.iter().any(|victim| victim.pid == process.pid);
            if is_dead && was_stopped && !process.threads.is_empty() && !is_known {
                self.other_victims.push(OtherVictim { pid: process.pid, comm: process.comm.clone() });
            }
        }
    }
}
