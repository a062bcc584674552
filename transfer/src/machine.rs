//! What this process can say of itself: which machine it runs on, and random secrets.

use std::io;

/// Identifies this boot of this machine, so that two processes can tell that they share it.
/// Zero when the system does not say; zero never matches.
pub(crate) fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or(0)
}

/// 128 bits from the kernel's generator: nothing that a peer could guess.
pub(crate) fn random_u128() -> io::Result<u128> {
    let mut bytes = [0u8; 16];
    // SAFETY: the pointer and length are of one local array.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Requests of up to 256 bytes are never cut short once the generator is seeded.
    if got != bytes.len() as isize {
        return Err(io::Error::last_os_error());
    }
    Ok(u128::from_le_bytes(bytes))
}

/// How much memory this process may lock, for people.
#[cfg(feature = "nixl")]
pub(crate) fn memlock_limit() -> String {
    match memlock_bytes() {
        None => "unlimited".into(),
        Some(bytes) => format!("{} KiB", bytes >> 10),
    }
}

/// How much memory this process may lock; `None` without a limit.
pub(crate) fn memlock_bytes() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a local of the right type.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (got == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
