//! Peers that mean harm, or are broken: whatever they do, a client's time and memory are bounded, and its error tells where
//! it happened.

mod answers;
mod bombs;
mod established;
mod stalls;

use async_nsq::protocol::encode_frame;
use async_nsq::{ErrorKind, protocol};
use bytes::BytesMut;

use crate::chain;
use crate::peer::{ADDRESS, At, Ending};

impl<T: std::fmt::Debug> Ending<T> {
    /// It is of this kind, and tells where it happened.
    fn check(&self, place: At, kind: ErrorKind) -> String {
        let text = chain(&self.error);
        let told = (self.error.kind(), self.error.step());
        assert_eq!(told, (kind, Some(place.step())), "{place:?}: {text}");
        assert_eq!(self.error.address(), Some(ADDRESS), "{text}");
        text
    }
}

fn frame(frame: &protocol::Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    encode_frame(frame, &mut bytes);
    bytes
}
