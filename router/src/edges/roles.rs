//! Who speaks in a conversation.

/// A role that no chat template knows.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the role {0:?} is none of system, developer, user, assistant and tool")]
pub(super) struct UnknownRole(String);

/// The role as templates know it. OpenAI's newer `developer` is their `system`.
///
/// # Errors
/// For any other role: templates pass over those in silence, and what was said would be lost.
pub(super) fn canonical(role: &str) -> Result<&'static str, UnknownRole> {
    match role {
        "system" | "developer" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "tool" => Ok("tool"),
        other => Err(UnknownRole(other.to_owned())),
    }
}
