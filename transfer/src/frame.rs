//! What travels on a connection besides payload.
//!
//! A frame is an 8-byte header (`u32` body length, `u8` kind, three zero bytes) and a body of at
//! most [`MAX_BODY`] bytes. Payload never travels in frames: over TCP the bytes of a page follow
//! their `Write` frame on the socket; otherwise they are in the ring, and `Data` frames say how many
//! more of them are.

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::layout::{Layout, MAX_FIELDS};

const MAGIC: u64 = u64::from_le_bytes(*b"MILLRACE");
pub(crate) const VERSION: u16 = 3;
pub(crate) const HEADER: usize = 8;
/// Longest message of an announcement.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;
/// Longest description of a target's ring: NIXL's, which is mostly addresses of network cards.
pub(crate) const MAX_DESCRIPTION: usize = 64 << 10;
/// Longest body: an announcement with its longest message, or a layout at its limits.
pub(crate) const MAX_BODY: usize = MAX_MESSAGE + (8 << 10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    // Initiator to target.
    /// With `nixl` the peer wants a ring that it can write by NIXL, with `device` one in the memory of the
    /// target's device if that can be had.
    Hello {
        incarnation: u128,
        nixl: bool,
        device: bool,
        layout: Layout,
    },
    /// A page follows. `seq` counts the frames that want an answer, from 0.
    Write {
        seq: u64,
        lease: u64,
        key: u128,
        index: u32,
        bytes: u64,
        checksum: Option<u64>,
    },
    /// `bytes` more of the page are in the ring.
    Data {
        bytes: u32,
    },
    /// Every page of the lease has been written.
    Finish {
        seq: u64,
        lease: u64,
        key: u128,
        message: Vec<u8>,
    },
    /// The rest of the lease will not be written. Wants no answer.
    Abandon {
        lease: u64,
        key: u128,
    },
    Ping {
        seq: u64,
    },
    // Target to initiator.
    /// Accepted. `ring_bytes` is 0 where payload goes over the socket; a peer silent for
    /// `idle_millis` between writes is let go. For NIXL, `ring_address` and `description` are what
    /// the peer needs to write the ring. For shared memory, `description` is the handle of a ring in a
    /// device's memory, and the descriptor passed along says when the peer has let go of it; without a
    /// handle the descriptor is the ring.
    Welcome {
        ring_bytes: u64,
        checksums: bool,
        idle_millis: u64,
        ring_address: u64,
        description: Vec<u8>,
    },
    /// Turned away. For a mismatch, `field` differs: `ours` at the target, `theirs` at the peer.
    Refused {
        reason: Reason,
        field: String,
        ours: String,
        theirs: String,
    },
    Ack {
        seq: u64,
    },
    Nack {
        seq: u64,
        code: u16,
        detail: String,
    },
    /// `bytes` of the ring may be used again.
    Credit {
        bytes: u64,
    },
}

/// Why a target turns a peer away at the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Mismatch = 0,
    OtherIncarnation = 1,
    Busy = 2,
    /// Not by NIXL; `ours` says why.
    NoNixl = 3,
}

impl Reason {
    fn from_code(code: u8) -> Result<Reason, DecodeError> {
        match code {
            0 => Ok(Reason::Mismatch),
            1 => Ok(Reason::OtherIncarnation),
            2 => Ok(Reason::Busy),
            3 => Ok(Reason::NoNixl),
            other => Err(DecodeError::BadValue {
                what: "refusal reason",
                value: other.into(),
            }),
        }
    }
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Hello { .. } => 1,
            Frame::Write { .. } => 2,
            Frame::Data { .. } => 3,
            Frame::Finish { .. } => 4,
            Frame::Abandon { .. } => 5,
            Frame::Ping { .. } => 6,
            Frame::Welcome { .. } => 16,
            Frame::Refused { .. } => 17,
            Frame::Ack { .. } => 18,
            Frame::Nack { .. } => 19,
            Frame::Credit { .. } => 20,
        }
    }

    /// Name for errors about frames that came at the wrong time.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Frame::Hello { .. } => "hello",
            Frame::Write { .. } => "write",
            Frame::Data { .. } => "data",
            Frame::Finish { .. } => "finish",
            Frame::Abandon { .. } => "abandon",
            Frame::Ping { .. } => "ping",
            Frame::Welcome { .. } => "welcome",
            Frame::Refused { .. } => "refused",
            Frame::Ack { .. } => "ack",
            Frame::Nack { .. } => "nack",
            Frame::Credit { .. } => "credit",
        }
    }

    /// Appends the frame to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let mut to = Writer::new(out);
        to.u32(0).u8(self.kind()).bytes(&[0; 3]);
        match self {
            Frame::Hello {
                incarnation,
                nixl,
                device,
                layout,
            } => {
                to.u64(MAGIC).u16(VERSION).u128(*incarnation);
                to.u8((*nixl).into()).u8((*device).into());
                to.u64(layout.page_bytes() as u64)
                    .u32(layout.fields().len() as u32);
                for (name, value) in layout.fields() {
                    to.text(name).text(value);
                }
            }
            Frame::Write {
                seq,
                lease,
                key,
                index,
                bytes,
                checksum,
            } => {
                to.u64(*seq).u64(*lease).u128(*key).u32(*index).u64(*bytes);
                to.u8(checksum.is_some().into()).u64(checksum.unwrap_or(0));
            }
            Frame::Data { bytes } => {
                to.u32(*bytes);
            }
            Frame::Finish {
                seq,
                lease,
                key,
                message,
            } => {
                to.u64(*seq).u64(*lease).u128(*key).bytes(message);
            }
            Frame::Abandon { lease, key } => {
                to.u64(*lease).u128(*key);
            }
            Frame::Ping { seq } | Frame::Ack { seq } => {
                to.u64(*seq);
            }
            Frame::Welcome {
                ring_bytes,
                checksums,
                idle_millis,
                ring_address,
                description,
            } => {
                to.u64(*ring_bytes).u8((*checksums).into());
                to.u64(*idle_millis).u64(*ring_address).bytes(description);
            }
            Frame::Refused {
                reason,
                field,
                ours,
                theirs,
            } => {
                to.u8(*reason as u8).text(field).text(ours).text(theirs);
            }
            Frame::Nack { seq, code, detail } => {
                to.u64(*seq).u16(*code).text(detail);
            }
            Frame::Credit { bytes } => {
                to.u64(*bytes);
            }
        }
        let body = out.len() - start - HEADER;
        debug_assert!(body <= MAX_BODY, "{} frame of {body} bytes", self.name());
        out[start..start + 4].copy_from_slice(&(body as u32).to_le_bytes());
    }

    /// The frame at the start of `bytes` and its length; `None` if more bytes are needed.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, DecodeError> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER) else {
            return Ok(None);
        };
        let mut from = Reader::new(header);
        let length = from.count("frame body", MAX_BODY)?;
        let kind = from.u8()?;
        if from.rest() != [0; 3] {
            return Err(DecodeError::BadValue {
                what: "reserved header byte",
                value: 1,
            });
        }
        // An unknown kind is refused before its body has come: it may never come.
        if !matches!(kind, 1..=6 | 16..=20) {
            return Err(DecodeError::UnknownKind(kind));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let mut from = Reader::new(body);
        let frame = Self::body(kind, &mut from)?;
        from.end()?;
        Ok(Some((frame, HEADER + length)))
    }

    fn body(kind: u8, from: &mut Reader<'_>) -> Result<Frame, DecodeError> {
        Ok(match kind {
            1 => hello(from)?,
            2 => {
                let (seq, lease, key) = (from.u64()?, from.u64()?, from.u128()?);
                let (index, bytes) = (from.u32()?, from.u64()?);
                let (has_checksum, value) = (from.flag("checksum flag")?, from.u64()?);
                let checksum = has_checksum.then_some(value);
                Frame::Write {
                    seq,
                    lease,
                    key,
                    index,
                    bytes,
                    checksum,
                }
            }
            3 => Frame::Data { bytes: from.u32()? },
            4 => {
                let (seq, lease, key) = (from.u64()?, from.u64()?, from.u128()?);
                let message = bounded(from, "message", MAX_MESSAGE)?;
                Frame::Finish {
                    seq,
                    lease,
                    key,
                    message,
                }
            }
            5 => Frame::Abandon {
                lease: from.u64()?,
                key: from.u128()?,
            },
            6 => Frame::Ping { seq: from.u64()? },
            16 => Frame::Welcome {
                ring_bytes: from.u64()?,
                checksums: from.flag("checksum flag")?,
                idle_millis: from.u64()?,
                ring_address: from.u64()?,
                description: bounded(from, "description", MAX_DESCRIPTION)?,
            },
            17 => Frame::Refused {
                reason: Reason::from_code(from.u8()?)?,
                field: from.text("field")?,
                ours: from.text("value")?,
                theirs: from.text("value")?,
            },
            18 => Frame::Ack { seq: from.u64()? },
            19 => Frame::Nack {
                seq: from.u64()?,
                code: from.u16()?,
                detail: from.text("detail")?,
            },
            20 => Frame::Credit { bytes: from.u64()? },
            other => return Err(DecodeError::UnknownKind(other)),
        })
    }
}

/// All that is left of a body.
fn bounded(
    from: &mut Reader<'_>,
    what: &'static str,
    limit: usize,
) -> Result<Vec<u8>, DecodeError> {
    let bytes = from.rest().to_vec();
    match bytes.len() {
        length if length > limit => Err(DecodeError::TooLong {
            what,
            length,
            limit,
        }),
        _ => Ok(bytes),
    }
}

fn hello(from: &mut Reader<'_>) -> Result<Frame, DecodeError> {
    if from.u64()? != MAGIC {
        return Err(DecodeError::Magic);
    }
    // Magic and version keep their place in every version, so that a mismatch has a name.
    let theirs = from.u16()?;
    if theirs != VERSION {
        return Err(DecodeError::Version {
            ours: VERSION,
            theirs,
        });
    }
    let (incarnation, nixl) = (from.u128()?, from.flag("NIXL flag")?);
    let device = from.flag("device flag")?;
    let page_bytes = from.u64()?;
    let page_bytes = usize::try_from(page_bytes).map_err(|_| DecodeError::BadValue {
        what: "page size",
        value: page_bytes,
    })?;
    let count = from.count("layout", MAX_FIELDS)?;
    let fields = (0..count)
        .map(|_| Ok((from.text("layout field")?, from.text("layout value")?)))
        .collect::<Result<_, DecodeError>>()?;
    Ok(Frame::Hello {
        incarnation,
        nixl,
        device,
        layout: Layout::from_parts(page_bytes, fields),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 0..20)
            .prop_map(|chars| chars.into_iter().collect())
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let layout = (
            any::<u32>(),
            proptest::collection::vec((text(), text()), 0..MAX_FIELDS),
        )
            .prop_map(|(page_bytes, fields)| Layout::from_parts(page_bytes as usize, fields));
        let reason = prop_oneof![
            Just(Reason::Mismatch),
            Just(Reason::OtherIncarnation),
            Just(Reason::Busy),
            Just(Reason::NoNixl)
        ];
        let write = any::<(u64, u64, u128, u32, u64, Option<u64>)>();
        prop_oneof![
            (any::<(u128, bool, bool)>(), layout).prop_map(
                |((incarnation, nixl, device), layout)| Frame::Hello {
                    incarnation,
                    nixl,
                    device,
                    layout,
                }
            ),
            write.prop_map(|(seq, lease, key, index, bytes, checksum)| {
                Frame::Write {
                    seq,
                    lease,
                    key,
                    index,
                    bytes,
                    checksum,
                }
            }),
            any::<u32>().prop_map(|bytes| Frame::Data { bytes }),
            any::<(u64, u64, u128, Vec<u8>)>().prop_map(|(seq, lease, key, message)| {
                Frame::Finish {
                    seq,
                    lease,
                    key,
                    message,
                }
            }),
            any::<(u64, u128)>().prop_map(|(lease, key)| Frame::Abandon { lease, key }),
            any::<u64>().prop_map(|seq| Frame::Ping { seq }),
            any::<(u64, bool, u64, u64, Vec<u8>)>().prop_map(
                |(ring_bytes, checksums, idle_millis, ring_address, description)| {
                    Frame::Welcome {
                        ring_bytes,
                        checksums,
                        idle_millis,
                        ring_address,
                        description,
                    }
                }
            ),
            (reason, text(), text(), text()).prop_map(|(reason, field, ours, theirs)| {
                Frame::Refused {
                    reason,
                    field,
                    ours,
                    theirs,
                }
            }),
            any::<u64>().prop_map(|seq| Frame::Ack { seq }),
            (any::<(u64, u16)>(), text()).prop_map(|((seq, code), detail)| Frame::Nack {
                seq,
                code,
                detail
            }),
            any::<u64>().prop_map(|bytes| Frame::Credit { bytes }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(frame in frames(), after in any::<Vec<u8>>()) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let length = bytes.len();
            for cut in 0..length {
                prop_assert_eq!(Frame::decode(&bytes[..cut]), Ok(None));
            }
            bytes.extend(after);
            prop_assert_eq!(Frame::decode(&bytes), Ok(Some((frame, length))));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            let _ = Frame::decode(&bytes);
            let _ = crate::Grant::from_bytes(&bytes);
        }

        /// Bytes that look like a frame until the body.
        #[test]
        fn arbitrary_bodies_never_panic(kind in 0u8..24, body in any::<Vec<u8>>()) {
            let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
            bytes.extend([kind, 0, 0, 0]);
            bytes.extend(body);
            let _ = Frame::decode(&bytes);
        }

        #[test]
        fn one_wrong_byte_never_panics(frame in frames(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Frame::decode(&bytes);
        }
    }

    #[test]
    fn frames_are_bounded() {
        let mut bytes = vec![0xff; HEADER];
        let limit = MAX_BODY;
        let length = u32::MAX as usize;
        assert_eq!(
            Frame::decode(&bytes),
            Err(DecodeError::TooLong {
                what: "frame body",
                length,
                limit
            })
        );
        // A kind that does not exist is refused without waiting for its body.
        bytes = vec![9, 0, 0, 0, 77, 0, 0, 0];
        assert_eq!(Frame::decode(&bytes), Err(DecodeError::UnknownKind(77)));
        let mut hello = Vec::new();
        let text = "x".repeat(crate::codec::MAX_TEXT);
        let full = (0..MAX_FIELDS).fold(Layout::new(1), |layout, _| {
            layout.with(text.clone(), text.clone())
        });
        Frame::Hello {
            incarnation: 0,
            nixl: true,
            device: true,
            layout: full,
        }
        .encode(&mut hello);
        assert!(matches!(Frame::decode(&hello), Ok(Some(_))));
    }
}
