//! Bodies of answers as hyper takes them: whole ones, and those of event streams, which grow.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

use super::exchange::Response;
use crate::shard::message::RequestId;

/// An answer with either body.
pub(super) type Answer = hyper::Response<Either<Full<Bytes>, Growing>>;

/// What becomes of a growing body.
pub(super) enum Progress {
    /// Its last part has been taken.
    Taken(RequestId),
    /// Nobody takes more of it.
    Gone(RequestId),
}

/// A body whose parts come one by one; it ends when their sender is dropped.
pub(super) struct Growing {
    id: RequestId,
    parts: mpsc::Receiver<Bytes>,
    progress: mpsc::Sender<Progress>,
}

pub(super) fn whole(response: Response) -> Answer {
    response.map(|body| Either::Left(Full::new(body)))
}

/// `id` is the request that it answers. There must be room in `progress` for two reports of every open connection.
pub(super) fn growing(
    head: Response,
    id: RequestId,
    parts: mpsc::Receiver<Bytes>,
    progress: mpsc::Sender<Progress>,
) -> Answer {
    head.map(|_| Either::Right(Growing { id, parts, progress }))
}

impl Body for Growing {
    type Data = Bytes;
    type Error = Infallible;

    /// hyper asks only when it has room to write.
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = ready!(self.parts.poll_recv(cx));
        if part.is_some() {
            let _ = self.progress.try_send(Progress::Taken(self.id));
        }
        Poll::Ready(part.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let _ = self.progress.try_send(Progress::Gone(self.id));
    }
}
