use proptest::prelude::*;

use super::*;

const LIMITS: FrameLimits = FrameLimits {
    hidden: 3,
    rows: 10,
    work: 20,
    slots: 4,
};

fn headers() -> impl Strategy<Value = Header> {
    let start = any::<(u64, u64, u64, u32)>().prop_map(|(epoch, step, ready_for, rows)| {
        Header::start(&Start {
            epoch,
            step,
            ready_for,
            rows: rows as usize,
        })
    });
    let key = any::<(u64, u64, u32, bool)>().prop_map(|(epoch, step, layer, dispatch)| Key {
        epoch,
        step,
        layer,
        phase: if dispatch {
            Phase::Dispatch
        } else {
            Phase::Respond
        },
    });
    let shared = (any::<(u64, u64, u32)>(), 0..=MOST_SHARED).prop_map(|(key, length)| {
        let (epoch, step, layer) = key;
        let phase = Phase::Share;
        let key = Key {
            epoch,
            step,
            layer,
            phase,
        };
        Header::bytes(key, length)
    });
    let parcel = (key, 0..=LIMITS.rows, 0..=LIMITS.work).prop_map(|(key, rows, work)| {
        let work = if key.phase == Phase::Dispatch {
            work
        } else {
            0
        };
        Header::parcel(key, rows, work, LIMITS.hidden)
    });
    prop_oneof![
        Just(Header::bare(Kind::Welcome)),
        Just(Header::bare(Kind::Heartbeat)),
        (0..=MAX_GREETING).prop_map(|length| Header::greeting(Kind::Hello, length)),
        (0..=MAX_GREETING).prop_map(|length| Header::greeting(Kind::Refused, length)),
        start,
        shared,
        parcel,
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(header in headers()) {
        prop_assert_eq!(Header::decode(&header.encode(), &LIMITS), Ok(header));
    }

    /// Whatever is let through says how much is to be read, and that is bounded.
    #[test]
    fn wrong_bytes_never_ask_for_more_than_the_limits(
        header in headers(),
        wrong in proptest::collection::vec((3..HEADER, any::<u8>()), 0..4),
    ) {
        let mut bytes = header.encode();
        for (at, byte) in wrong {
            bytes[at] = byte;
        }
        if let Ok(header) = Header::decode(&bytes, &LIMITS) {
            let most = MAX_GREETING.max(LIMITS.work * (WORK_BYTES + LIMITS.hidden * 4));
            prop_assert!(header.length as usize <= most);
            prop_assert_eq!(header.encode(), bytes);
        }
    }
}

#[test]
fn another_version_is_named() {
    let mut bytes = Header::bare(Kind::Heartbeat).encode();
    bytes[3] = 1;
    let why = FrameError::Version { ours: 2, theirs: 1 };
    assert_eq!(Header::decode(&bytes, &LIMITS), Err(why));
}
