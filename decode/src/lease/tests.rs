use std::sync::Arc;

use millrace_engine::pages::PagePool;
use millrace_kernels::{KvDtype, PageLayout, PageMemory};
use millrace_transfer::{
    Grant, Initiator, InitiatorConfig, Layout, PageInitiator as _, PageWriter, Source, Target,
    TargetConfig,
};
use millrace_worker::transfer_region;

use super::*;

const LAYOUT: PageLayout = PageLayout {
    layers: 2,
    row_values: 16,
    latent: 0,
    dtype: KvDtype::Bf16,
};
const PAGES: usize = 8;

struct Decoder {
    pool: PagePool,
    target: Target,
}

impl Decoder {
    fn new() -> Decoder {
        let pool = PagePool::new(PageMemory::allocate(LAYOUT, PAGES).unwrap());
        let target = Target::bind(
            "127.0.0.1:0".parse().unwrap(),
            transfer_region(&pool).unwrap(),
            Layout::new(LAYOUT.page_bytes()),
            TargetConfig::default(),
        )
        .unwrap();
        Decoder { pool, target }
    }

    fn lend(&self, count: usize) -> PagesAtPeer {
        let pages = LeasedPages::lease(self.pool.allocate(count).unwrap());
        let pages = PagesAtPeer::grant(&self.target, pages, 0).unwrap();
        assert_eq!(self.pool.leased(), count);
        pages
    }

    fn assert_all_pages_are_free(&self) {
        assert_eq!(self.pool.leased(), 0);
        assert_eq!(self.pool.available(), PAGES);
        let leases = self.target.stats().leases;
        assert_eq!((leases.active, leases.dropped), (0, 0));
    }
}

fn writer(pages: &PagesAtPeer) -> (Arc<Initiator>, Box<dyn PageWriter>) {
    let layout = Layout::new(LAYOUT.page_bytes());
    let initiator = Arc::new(Initiator::new(layout, InitiatorConfig::default()).unwrap());
    let grant = Grant::from_bytes(pages.descriptor()).unwrap();
    let writer = initiator.open(&grant).unwrap();
    (initiator, writer)
}

fn page(value: u8) -> Source {
    Source::from_bytes(vec![value; LAYOUT.page_bytes()])
}

#[test]
fn a_finished_prefill_gives_its_pages_back_filled() {
    let decoder = Decoder::new();
    let pages = decoder.lend(3);
    let (_initiator, mut writer) = writer(&pages);
    for index in 0..3 {
        writer.write(index, page(7 + index as u8)).unwrap();
    }
    writer.finish(Vec::new()).unwrap();
    let filled = pages.complete().unwrap();
    assert_eq!(decoder.pool.leased(), 0);
    for (index, page) in filled.iter().enumerate() {
        // SAFETY: the lease has ended and nobody else holds the page.
        let bytes = unsafe { page.bytes() };
        assert!(bytes.iter().all(|byte| *byte == 7 + index as u8));
    }
    release(filled);
    decoder.assert_all_pages_are_free();
}

#[test]
fn pages_come_back_wherever_they_are_dropped() {
    let decoder = Decoder::new();
    drop(decoder.lend(PAGES));
    decoder.assert_all_pages_are_free();

    let pages = decoder.lend(2);
    let (_initiator, mut writer) = writer(&pages);
    writer.write(0, page(1)).unwrap();
    drop(pages);
    decoder.assert_all_pages_are_free();
    // The peer learns it from its next page, or at the end.
    let wrote = writer.write(1, page(1));
    assert!(wrote.and_then(|()| writer.finish(Vec::new())).is_err());
    decoder.assert_all_pages_are_free();
}

#[test]
fn an_answer_before_the_last_page_is_not_believed() {
    let decoder = Decoder::new();
    let pages = decoder.lend(2);
    let incomplete = pages.complete().unwrap_err();
    assert_eq!(
        incomplete,
        Incomplete {
            landed: 0,
            pages: 2
        }
    );
    decoder.assert_all_pages_are_free();
}
