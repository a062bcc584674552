use std::sync::Arc;

use millrace_engine::pages::PagePool;
use millrace_kernels::{KvDtype, PageLayout, PageMemory};
use millrace_transfer::{Layout, PageTarget as _, Target, TargetConfig};
use millrace_worker::{transfer_region, wire::sampling_to_wire};

use super::*;

const LAYOUT: PageLayout = PageLayout {
    layers: 1,
    row_values: 16,
    latent: 0,
    dtype: KvDtype::Bf16,
};

/// A grant of `pages` pages, as a decode worker makes it.
fn descriptor(pages: u32) -> Vec<u8> {
    let memory = PageMemory::allocate(LAYOUT, 8).unwrap();
    let pool = PagePool::new(Arc::clone(&memory));
    let target = Target::bind(
        "127.0.0.1:0".parse().unwrap(),
        transfer_region(&pool).unwrap(),
        Layout::new(LAYOUT.page_bytes()),
        TargetConfig::default(),
    )
    .unwrap();
    let (lease, grant) = target.grant(&(0..pages).collect::<Vec<_>>(), None).unwrap();
    let bytes = grant.to_bytes();
    drop(lease.revoke());
    bytes
}

/// 100 tokens are two pages, the first of which is there.
fn request() -> wire::PrefillRequest {
    wire::PrefillRequest {
        request_id: "r1".to_string(),
        token_ids: (0..100).collect(),
        prompt_tokens: 90,
        sampling: Some(sampling_to_wire(&SamplingParams {
            max_tokens: 32,
            ..SamplingParams::default()
        })),
        grant: Some(wire::WriteGrant {
            descriptor: descriptor(1),
        }),
        first_page: 1,
        compatibility: Some(Compatibility::new("rev".to_string(), &LAYOUT).into()),
        cache_salt: "tenant".to_string(),
    }
}

#[test]
fn a_request_is_read_whole() {
    let job = Job::from_wire(request(), 2048).unwrap();
    assert_eq!((job.tokens.len(), job.prompt_tokens), (100, 90));
    assert_eq!((job.first_page, job.grant.pages().len()), (1, 1));
    assert_eq!(job.cache_salt, "tenant");
}

#[test]
fn every_bad_field_is_named() {
    type Change = fn(&mut wire::PrefillRequest);
    let cases: [(&str, Change); 9] = [
        ("sampling", |r| r.sampling = None),
        ("compatibility", |r| r.compatibility = None),
        ("grant", |r| r.grant = None),
        ("grant.descriptor", |r| {
            r.grant.as_mut().unwrap().descriptor.pop();
        }),
        ("grant.descriptor", |r| {
            r.grant.as_mut().unwrap().descriptor = descriptor(2);
        }),
        ("first_page", |r| r.first_page = 2),
        ("first_page", |r| r.token_ids.clear()),
        ("prompt_tokens", |r| r.prompt_tokens = 101),
        ("sampling.top_p", |r| {
            r.sampling.as_mut().unwrap().top_p = f32::NAN;
        }),
    ];
    for (field, change) in cases {
        let mut request = request();
        change(&mut request);
        let error = Job::from_wire(request, 2048).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
}
