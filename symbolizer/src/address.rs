//! Address spaces as types.

use serde::{Deserialize, Serialize};

/// Address in the target's virtual memory ("actual" VMA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Avma(pub u64);

/// Address as the ELF file states it ("stated" VMA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Svma(pub u64);
