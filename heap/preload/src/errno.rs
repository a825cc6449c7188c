//! The caller's errno: a malloc that succeeds and any free leave it as it is.

/// Puts errno back when it is dropped.
pub struct Errno(i32);

impl Errno {
    /// Remembers errno.
    #[inline]
    pub fn keep() -> Self {
        // SAFETY: the thread's errno always exists.
        Errno(unsafe { *libc::__errno_location() })
    }

    /// Errno now.
    pub fn now() -> i32 {
        Self::keep().0
    }
}

impl Drop for Errno {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = self.0 };
    }
}
