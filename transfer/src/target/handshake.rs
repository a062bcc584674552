//! Deciding whether a peer may send frames at all.

use super::Shared;
use super::end::End;
use crate::error::DecodeError;
use crate::frame::{Frame, Reason};
use crate::layout::Layout;

/// The kinds of ring that a peer can write besides one that it maps.
pub(super) struct Asked {
    pub nixl: bool,
    pub device: bool,
}

/// Checks a peer's first frame.
pub(super) fn check(shared: &Shared, first: Result<Frame, End>) -> Result<Asked, End> {
    match first {
        Ok(Frame::Hello {
            incarnation,
            nixl,
            device,
            layout,
        }) => fits(shared, incarnation, &layout).map(|()| Asked { nixl, device }),
        Ok(other) => Err(End::OutOfTurn(other.name())),
        Err(End::Malformed(DecodeError::Version { ours, theirs })) => Err(End::Mismatch {
            field: "protocol version".into(),
            ours: ours.to_string(),
            theirs: theirs.to_string(),
        }),
        Err(end) => Err(end),
    }
}

fn fits(shared: &Shared, incarnation: u128, layout: &Layout) -> Result<(), End> {
    // First, because nothing else means much to a peer that looks for another worker. The number
    // is random, so it also keeps out whoever has never been given a grant.
    if incarnation != shared.incarnation {
        return Err(End::OtherIncarnation);
    }
    match shared.layout.difference(layout) {
        None => Ok(()),
        Some(at) => Err(End::Mismatch {
            field: at.field,
            ours: at.ours,
            theirs: at.theirs,
        }),
    }
}

/// The frame that tells a peer why it is turned away, where it should know.
pub(super) fn refusal(end: &End) -> Option<Frame> {
    let frame = |reason, field: &str, ours: &str, theirs: &str| Frame::Refused {
        reason,
        field: field.into(),
        ours: ours.into(),
        theirs: theirs.into(),
    };
    match end {
        End::Mismatch {
            field,
            ours,
            theirs,
        } => Some(frame(Reason::Mismatch, field, ours, theirs)),
        End::OtherIncarnation => Some(frame(Reason::OtherIncarnation, "", "", "")),
        End::NoNixl(cause) => Some(frame(Reason::NoNixl, "", cause, "")),
        _ => None,
    }
}
