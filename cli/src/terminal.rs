//! The terminal that standard output is, if it is one.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

/// `None` where there is no terminal.
pub fn size() -> Option<Size> {
    // SAFETY: winsize is plain numbers, for which all zeros are a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize where it is pointed to, and fails where there is no terminal.
    let answer = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    (answer == 0 && size.ws_col > 0).then_some(Size {
        columns: size.ws_col.into(),
        rows: size.ws_row.into(),
    })
}
