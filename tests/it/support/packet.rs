//! The packets of Postgres's protocol, taken apart.

/// The type `text`.
pub(super) const TEXT: i32 = 25;

/// Takes the first message, if all of it is there.
pub(super) fn cut(input: &mut Vec<u8>, tagged: bool) -> Option<(u8, Vec<u8>)> {
    let head = usize::from(tagged);
    let end = head + usize::try_from(int(input.get(head..)?)?).unwrap();
    let body = input.get(head + 4..end)?.to_vec();
    let tag = if tagged { input[0] } else { 0 };
    input.drain(..end);
    Some((tag, body))
}

pub(super) fn int(bytes: &[u8]) -> Option<i32> {
    bytes.first_chunk().map(|bytes| i32::from_be_bytes(*bytes))
}

/// Texts that end in zero, as far as they are texts.
pub(super) fn strings(bytes: &[u8]) -> impl Iterator<Item = &str> {
    bytes
        .split(|byte| *byte == 0)
        .map(|text| std::str::from_utf8(text).unwrap_or_default())
}

/// Returns the description of a row that has one column of text.
pub(super) fn text_column() -> Vec<u8> {
    let mut body = 1_i16.to_be_bytes().to_vec();
    body.extend(b"tenant\0");
    body.extend([0; 6]); // of no table
    body.extend(TEXT.to_be_bytes());
    body.extend([0xff; 6]); // of any length, without a modifier
    body.extend([0; 2]);
    body
}
