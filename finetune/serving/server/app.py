"""The routes. READ THIS FIRST: each is a line or two over desk (in), jobs (wait) and answers (out)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from finetune.serving.engine import Engine
from finetune.serving.server import metrics, replies
from finetune.serving.server.answers import chat_chunks, chat_completion, completion, text_chunks
from finetune.serving.server.auth import Guard
from finetune.serving.server.catalogue import Catalogue
from finetune.serving.server.desk import Desk
from finetune.serving.server.errors import install
from finetune.serving.server.jobs import Job
from finetune.serving.server.lifecycle import InFlight, Lifecycle
from finetune.serving.server.limits import Limits
from finetune.serving.server.options import Options
from finetune.serving.server.page import Reports, cards, pages
from finetune.serving.server.schemas import ChatRequest, CompletionRequest, LoadAdapter, UnloadAdapter
from finetune.serving.server.streaming import CLIENT_GONE, EventStream, unless_gone

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": replies.ErrorReply, "description": "what is wrong with the request"},
    "5XX": {"model": replies.ErrorReply, "description": "what is wrong with the server"},
}
_KEY = HTTPBearer(auto_error=False, description="the API key; for loading and unloading the admin key")


class App(FastAPI):
    """The server's parts; what runs it reaches them through here."""

    def __init__(self, engine: Engine, catalogue: Catalogue, options: Options) -> None:
        # No pages of FastAPI's own: they load scripts from other servers.
        super().__init__(title="finetune", docs_url=None, redoc_url=None, separate_input_output_schemas=False)
        self.limits, self.catalogue = options, catalogue
        self.lifecycle = Lifecycle(engine)
        self.metrics = metrics.Metrics(catalogue, self.lifecycle)
        self.desk = Desk(engine, catalogue, timeout=options.answer_timeout, done=self.metrics.record)
        install(self)
        self.include_router(_answers(self.desk))
        self.include_router(_models(catalogue))
        self.include_router(_state(self))
        reports = Reports(catalogue.bank)
        self.include_router(cards(reports), dependencies=[Security(_KEY)], responses=_ERRORS)
        self.include_router(pages(reports))
        # The last one added is the first to see a request.
        self.add_middleware(Limits, options=options)
        self.add_middleware(InFlight, lifecycle=self.lifecycle)
        self.add_middleware(Guard, options=options)
        self.add_middleware(metrics.Counted, metrics=self.metrics)


def create_app(engine: Engine, *, store: Path, options: Options) -> App:
    """Build the server over a started engine with a bank."""
    if engine.bank is None:
        raise ValueError("the server needs an engine with a bank")
    return App(engine, Catalogue(engine.base, engine.bank, store=store, created=int(time.time())), options)


def _answers(desk: Desk) -> APIRouter:
    router = APIRouter(dependencies=[Security(_KEY)])

    @router.post("/v1/chat/completions", response_model=None, responses=_replies(replies.ChatCompletion, stream=True))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        job = await desk.chat(body)
        if body.stream:
            return EventStream(job, chat_chunks(job, wants_usage=body.wants_usage))
        async with job:
            reply = await unless_gone(request.receive, chat_completion(job, logprobs=bool(body.logprobs)))
        return _whole(reply, job)

    @router.post("/v1/completions", response_model=None, responses=_replies(replies.Completion, stream=True))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text, without a chat template."""
        job = await desk.complete(body)
        if body.stream:
            return EventStream(job, text_chunks(job, wants_usage=body.wants_usage))
        async with job:
            reply = await unless_gone(request.receive, completion(job, logprobs=body.logprobs is not None))
        return _whole(reply, job)

    return router


def _models(catalogue: Catalogue) -> APIRouter:
    router = APIRouter(dependencies=[Security(_KEY)])

    @router.get("/v1/models", responses=_replies(replies.ModelList))
    async def models() -> replies.ModelList:
        """The base and the adapters that are loaded."""
        return replies.ModelList(data=catalogue.cards())

    @router.get("/v1/models/{model:path}", responses=_replies(replies.ModelCard))
    async def model(model: str) -> replies.ModelCard:
        """One model, or a blend of adapters."""
        return catalogue.card(model)

    @router.post("/v1/load_lora_adapter", responses=_replies(replies.ModelCard))
    async def load_lora_adapter(body: LoadAdapter) -> replies.ModelCard:
        """Load an adapter of the store, or load it again if its weights have changed."""
        return await asyncio.to_thread(catalogue.load, body.lora_name, body.lora_path)

    @router.post("/v1/unload_lora_adapter", responses=_replies(replies.Deleted))
    async def unload_lora_adapter(body: UnloadAdapter) -> replies.Deleted:
        """Unload an adapter; answers that use it are finished with it first."""
        await asyncio.to_thread(catalogue.unload, body.lora_name)
        return replies.Deleted(id=body.lora_name)

    return router


def _state(app: App) -> APIRouter:
    router = APIRouter()

    @router.get("/health", response_model=None, responses=_replies(replies.Health))
    async def health() -> Response:
        """ready, or draining with status 503."""
        stats, draining = app.lifecycle.engine.stats, app.lifecycle.draining
        reply = replies.Health(
            status="draining" if draining else "ready",
            base=app.catalogue.base_id,
            adapters=len(app.catalogue.bank.names),
            running=stats.running,
            waiting=stats.waiting,
        )
        return JSONResponse(reply.model_dump(), 503 if draining else 200)

    @router.get("/metrics", response_model=None, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Numbers for Prometheus."""
        return Response(app.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    return router


def _replies(reply: type[BaseModel], *, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    whole: dict[str, Any] = {"model": reply}
    if stream:
        whole["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: whole, **_ERRORS}


def _whole(reply: BaseModel | None, job: Job) -> Response:
    if reply is None:
        return Response(status_code=CLIENT_GONE)
    return Response(reply.model_dump_json(), headers=job.stamp.headers, media_type="application/json")
