//! Memory-starved programs, made explicable.
