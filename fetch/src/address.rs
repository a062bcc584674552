//! URLs of folders and of files in them.

use reqwest::Url;

use crate::error::FetchError;

/// A folder on a web server; what comes back ends in `/`.
pub(crate) fn http(text: &str) -> Result<Url, FetchError> {
    let fail = |what| FetchError::Url {
        url: text.to_owned(),
        what,
    };
    let mut url = Url::parse(text)
        .map_err(|_| fail("is no URL: give http://, https:// or s3:// and a folder"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(fail(
            "is of a kind that is not known: give http://, https:// or s3://",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Not repeated in the message.
        let (url, what) = (
            redacted(&url),
            "holds a password: give a token with --token-file instead",
        );
        return Err(FetchError::Url { url, what });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(fail(
            "has a query or a fragment: give the folder alone, names are added to it",
        ));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

fn redacted(url: &Url) -> String {
    format!(
        "{}://…@{}{}",
        url.scheme(),
        url.host_str().unwrap_or_default(),
        url.path()
    )
}

/// Everything but what no server reads as anything else. S3 wants it for its signatures, and it is right
/// everywhere.
pub(crate) fn encode(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_as_s3_signs_them() {
        assert_eq!(encode("a-b_c.d~/e"), "a-b_c.d~/e");
        assert_eq!(encode("a b+c%2F=é"), "a%20b%2Bc%252F%3D%C3%A9");
    }

    #[test]
    fn a_folder_ends_in_a_slash_and_keeps_what_was_encoded() {
        assert_eq!(
            http("https://host/a%20b").unwrap().as_str(),
            "https://host/a%20b/"
        );
        assert_eq!(http("https://host").unwrap().as_str(), "https://host/");
    }
}
