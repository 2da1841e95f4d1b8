//! The image server on its sockets: one task per connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;

use super::Scheme;
use super::http::{Head, Request, read_head};
use super::plan::{Body, Cut, Part, Planned, Response, plan};
use crate::world::Shared;

/// Body bytes per write.
const CHUNK: usize = 128 * 1024;

/// Whether the connection can take another request.
#[derive(PartialEq, Eq)]
enum After {
    Next,
    Close,
}

/// Serves requests until the client, a fault or an error ends the connection. The cause is of no interest to the
/// server: what was served is in the counters.
pub(crate) async fn connection<S>(shared: Arc<Shared>, scheme: Scheme, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = Vec::new();
    loop {
        let request = match read_head(&buffer) {
            Head::Complete(request, length) => {
                buffer.drain(..length);
                request
            }
            Head::Partial => match stream.read_buf(&mut buffer).await {
                Ok(n) if n > 0 => continue,
                _ => return,
            },
            Head::Bad => {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
                return;
            }
        };
        match respond(&shared, scheme, &mut stream, &request).await {
            Ok(After::Next) => {}
            Ok(After::Close) => {
                let _ = stream.shutdown().await;
                return;
            }
            // Dropped without a goodbye: that is what a cut is.
            Err(_) => return,
        }
    }
}

async fn respond<S>(
    shared: &Shared,
    scheme: Scheme,
    stream: &mut S,
    request: &Request,
) -> std::io::Result<After>
where
    S: AsyncWrite + Unpin,
{
    // Taken before the request counts, so that a release that follows the request is not missed.
    let mut released = shared.stalls.subscribe();
    let Planned { response, path, .. } = shared.with(|world| {
        let now = world.clock.now();
        let planned = plan(&world.images, &mut world.faults, now, scheme, request);
        let count = world.record.counters.paths.entry(planned.path.clone()).or_default();
        count.requests += 1;
        count.offsets.push(planned.offset);
        count.statuses.push(planned.response.status);
        let text = format!(
            "{} {} from {} -> {}",
            request.method, planned.path, planned.offset, planned.response.status
        );
        world.record.event(now, "", "http", text);
        planned
    });
    let unannounced = matches!(&response.body, Body::Part(part) if part.extra > 0);
    let after = if request.close || unannounced { After::Close } else { After::Next };
    stream.write_all(head(&response, &after).as_bytes()).await?;
    match response.body {
        Body::Part(part) => send_part(shared, stream, part, &path, &mut released).await?,
        Body::Text(text) if request.method != "HEAD" => stream.write_all(text.as_bytes()).await?,
        Body::Text(_) | Body::Announced(_) => {}
    }
    stream.flush().await?;
    Ok(after)
}

fn head(response: &Response, after: &After) -> String {
    let reason = match response.status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        503 => "Slow Down",
        _ => "Internal Server Error",
    };
    let mut text = format!("HTTP/1.1 {} {reason}\r\nServer: lab\r\n", response.status);
    for (name, value) in &response.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    match &response.body {
        Body::Part(part) if part.extra > 0 => {}
        Body::Part(part) => text.push_str(&format!("Content-Length: {}\r\n", part.end - part.start)),
        Body::Announced(length) => text.push_str(&format!("Content-Length: {length}\r\n")),
        Body::Text(body) => text.push_str(&format!("Content-Length: {}\r\n", body.len())),
    }
    if *after == After::Close {
        text.push_str("Connection: close\r\n");
    }
    text.push_str("\r\n");
    text
}

async fn send_part<S>(
    shared: &Shared,
    stream: &mut S,
    mut part: Part,
    path: &str,
    released: &mut watch::Receiver<u64>,
) -> std::io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    let (mut at, end) = (part.start, part.end + part.extra);
    while at < end {
        if part.stall == Some(at) {
            part.stall = None;
            stream.flush().await?;
            // Fails only when the lab ends, and this task with it.
            let _ = released.changed().await;
        }
        if let Some((_, kind)) = part.cut.filter(|(place, _)| *place == at) {
            stream.flush().await?;
            if kind == Cut::AndExpire {
                shared.with(|world| world.images.signer.revoke());
            }
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        let stops = [part.stall, part.cut.map(|(place, _)| place), (at < part.end).then_some(part.end)];
        let stop = stops.into_iter().flatten().filter(|stop| *stop > at).chain([end]).min().unwrap_or(end);
        let most = part.rate.map_or(CHUNK as u64, |rate| (rate / 10).clamp(1, CHUNK as u64));
        let size = usize::try_from((stop - at).min(most)).unwrap_or(CHUNK);
        let chunk = &mut buffer[..size];
        if at < part.end {
            part.object.read(at, chunk)?;
        } else {
            chunk.fill(0xAA);
        }
        for place in part.wrong.iter().filter(|place| (at..at + size as u64).contains(place)) {
            chunk[usize::try_from(place - at).unwrap_or(0)] ^= 0xFF;
        }
        stream.write_all(chunk).await?;
        at += size as u64;
        shared.with(|world| {
            world.record.counters.paths.entry(path.to_owned()).or_default().body_bytes += size as u64
        });
        if let Some(rate) = part.rate {
            tokio::time::sleep(Duration::from_secs_f64(size as f64 / rate as f64)).await;
        }
    }
    Ok(())
}
