"""The front: HTTP in one process; batches go to workers whose sockets the parent hands over."""

import asyncio
import socket

import uvicorn

from lowbit.pipelines.pipeline import Pipeline
from lowbit.serving.app import application
from lowbit.serving.dispatcher import Dispatcher
from lowbit.serving.limits import guarded
from lowbit.serving.metrics import Metrics
from lowbit.serving.settings import Settings


def front(
    name: str,
    pipeline: Pipeline,
    settings: Settings,
    listener: socket.socket,
    control: socket.socket,
) -> None:
    """Answer until a signal to stop, and then what was accepted. control: a message with a
    worker's socket for each worker; if the parent ends, so does the front."""
    dispatcher = Dispatcher(pipeline, settings, Metrics())
    config = uvicorn.Config(
        application(name, dispatcher),
        http=guarded(settings.slow),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=int(settings.grace),
    )
    server = uvicorn.Server(config)
    asyncio.run(_run(server, dispatcher, listener, control))


async def _run(
    server: uvicorn.Server, dispatcher: Dispatcher, listener: socket.socket, control: socket.socket
) -> None:
    control.setblocking(False)
    loop = asyncio.get_running_loop()
    workers: set[asyncio.Task[None]] = set()

    def adopt() -> None:
        try:
            _, ends, _, _ = socket.recv_fds(control, 1, 1)
        except BlockingIOError:
            return
        if not ends:  # the parent has ended
            loop.remove_reader(control)
            server.should_exit = True
            return
        task = loop.create_task(dispatcher.serve(socket.socket(fileno=ends[0])))
        workers.add(task)
        task.add_done_callback(workers.discard)

    loop.add_reader(control, adopt)
    await server.serve([listener])
    loop.remove_reader(control)
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
