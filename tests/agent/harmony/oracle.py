"""What openai-harmony itself makes of a conversation and of a stream: the oracle of the tests, built without our codec."""

from __future__ import annotations

import openai_harmony as h

from agent.conversation import Conversation, Message, Role, ToolSpec

BUILT_IN = {"python": h.ToolNamespaceConfig.python, "browser": h.ToolNamespaceConfig.browser}


def to_library(conversation: Conversation) -> h.Conversation:
    """Build the library's conversation by hand."""
    system = h.SystemContent.new().with_reasoning_effort(h.ReasoningEffort(conversation.effort.title()))
    namespaces: dict[str, list[h.ToolDescription]] = {}
    functions = []
    for tool in conversation.tools:
        if tool.name in BUILT_IN:
            namespaces[tool.name] = []
        elif "." in tool.name:
            space, name = tool.name.split(".")
            namespaces.setdefault(space, []).append(describe(name, tool))
        else:
            functions.append(describe(tool.name, tool))
    for space, tools in namespaces.items():
        if space in BUILT_IN:
            system.with_tools(BUILT_IN[space]())
        else:
            system.with_tools(h.ToolNamespaceConfig(name=space, description=None, tools=tools))
    messages = [h.Message.from_role_and_content(h.Role.SYSTEM, system)]
    if conversation.instructions or functions:
        developer = h.DeveloperContent.new()
        if conversation.instructions:
            developer.with_instructions(conversation.instructions)
        if functions:
            developer.with_function_tools(functions)
        messages.append(h.Message.from_role_and_content(h.Role.DEVELOPER, developer))
    return h.Conversation.from_messages([*messages, *map(message_to_library, conversation.messages)])


def describe(name: str, tool: ToolSpec) -> h.ToolDescription:
    return h.ToolDescription.new(name, tool.description, dict(tool.parameters or {"type": "string"}))


def message_to_library(message: Message) -> h.Message:
    name = message.name if message.role is Role.TOOL else None
    built = h.Message.from_author_and_content(h.Author(role=h.Role(message.role.value), name=name), message.text)
    if message.channel:
        built.with_channel(message.channel.value)
    if message.role is Role.TOOL:
        built.with_recipient("assistant")
    elif message.recipient:
        built.with_recipient(message.recipient)
    if message.content_type:
        built.with_content_type("<|constrain|>json" if message.content_type == "json" else message.content_type)
    return built


def render(encoding: h.HarmonyEncoding, conversation: Conversation) -> list[int]:
    """The library's prompt, with its own pruning off."""
    config = h.RenderConversationConfig(auto_drop_analysis=False)
    return encoding.render_conversation_for_completion(to_library(conversation), h.Role.ASSISTANT, config)


def parse(encoding: h.HarmonyEncoding, completion: list[int]) -> list[tuple[str, str | None, str | None, str | None]]:
    """The library's messages as (text, channel, recipient, bare content type)."""
    parsed = encoding.parse_messages_from_completion_tokens(completion, h.Role.ASSISTANT)
    return [
        (
            "".join(part.text for part in message.content),
            message.channel,
            message.recipient,
            message.content_type.removeprefix("<|constrain|>") if message.content_type else None,
        )
        for message in parsed
    ]


def parse_prompt(encoding: h.HarmonyEncoding, prompt: list[int]) -> list[str]:
    """The roles that the library's own parser sees in a prompt, the opening of the next answer left out."""
    return [str(message.author.role.value) for message in encoding.parse_messages_from_completion_tokens(prompt[:-2])]
