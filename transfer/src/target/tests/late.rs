//! Peers that are late, stall, or go.

use super::*;

/// Half a page, then the lease ends and its pages are used again, then the other half.
#[test]
fn a_late_writer_lands_nothing_in_a_page_that_is_used_again() {
    for &wire in ALL {
        let scene = Scene::new(config());
        let (lease, grant) = scene.target.grant(&[1], None).unwrap();
        let mut peer = Peer::new(&grant, wire);
        peer.header(&grant, 0, 0);
        peer.payload(&[7; PAGE / 2]);
        wait_until("half a page lands", || {
            lease.landed_bytes() == PAGE as u64 / 2
        });
        let ended: WritesEnded = lease.revoke();
        assert_eq!(ended.pages(), [1]);
        scene.own(1);
        // The same page, even under a new lease.
        let (next, next_grant) = scene.target.grant(&[1], None).unwrap();
        peer.payload(&[7; PAGE - PAGE / 2]);
        match peer.answer() {
            Some(Frame::Nack { seq: 0, code, .. }) => {
                assert_eq!(code, FailureKind::LeaseEnded.code())
            }
            other => panic!("{other:?}"),
        }
        assert!(scene.untouched(1));
        // The connection is in step and goes on.
        peer.write(&next_grant, 1, 0, 5);
        assert_eq!(peer.answer(), Some(Frame::Ack { seq: 1 }));
        assert!(scene.page(1).iter().all(|byte| *byte == 5));
        let _ = next.revoke();
    }
}

#[test]
fn a_peer_that_stalls_or_goes_loses_its_connection_and_its_page_is_free_to_be_written() {
    for &wire in ALL {
        for goes in [false, true] {
            let stall = Duration::from_secs(if goes { 60 } else { 1 });
            let scene = Scene::new(TargetConfig { stall, ..config() });
            let (lease, grant) = scene.target.grant(&[1, 2], None).unwrap();
            let mut peer = Peer::new(&grant, wire);
            peer.header(&grant, 0, 0);
            peer.payload(&[7; PAGE / 2]);
            // Dropped here if it goes.
            let peer = (!goes).then_some(peer);
            assert_eq!(
                lease.wait(Duration::from_secs(60)),
                Some(LeaseEvent::WriterLost)
            );
            wait_until("the connection is gone", || scene.connections() == 0);
            let kind = if goes {
                FailureKind::Lost
            } else {
                FailureKind::Stalled
            };
            assert_eq!(scene.failures(kind), 1);
            assert_eq!(lease.landed_bytes(), 0);
            complete(&mut Peer::new(&grant, wire), lease, &grant);
            drop(peer);
        }
    }
}

#[test]
fn ending_a_lease_waits_for_no_more_than_a_copy() {
    // No peers: the table alone, with a "copy" that we hold open.
    let mut memory = vec![0u8; 8];
    let base = memory.as_mut_ptr();
    // SAFETY: the vector lives in the region and does not move.
    let region = unsafe { MemoryRegion::new(base, 8, 1, memory) }.unwrap();
    let table = LeaseTable::new(region);
    let lease = table.lease(&[0], None).unwrap();
    let mut page = table.begin(lease.id(), lease.key(), 0, 8).unwrap();
    let (copying, is_copying) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let copier = scope.spawn(move || {
            let copied = page.fill(8, |_, room| {
                copying.send(()).unwrap();
                gate.recv().unwrap();
                Ok(room)
            });
            assert_eq!(copied.unwrap().unwrap(), 8);
            page.fill(8, |_, _| unreachable!("after the end")).is_err()
        });
        is_copying.recv().unwrap();
        let ender = scope.spawn(move || lease.revoke());
        // It cannot end while bytes are being put into the page.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!ender.is_finished());
        go.send(()).unwrap();
        assert_eq!(ender.join().unwrap().pages(), [0]);
        assert!(copier.join().unwrap());
    });
}
