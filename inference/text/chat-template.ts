/** Chat templates: Jinja as transformers renders it. */
import { Template } from '@huggingface/jinja'
import { fail } from '../../errors.ts'
import type { Tokenizer } from './tokenizer.ts'

/** One message; templates may read further fields (tool_calls, name, ...). */
export interface ChatMessage {
  readonly role: string
  readonly content?: unknown
  readonly [field: string]: unknown
}

export interface ChatTemplateOptions {
  /** End with the opening of the assistant's turn. Default true. */
  readonly addGenerationPrompt?: boolean | undefined
  /** Tools that the template describes to the model, as JSON schemas. */
  readonly tools?: readonly unknown[] | undefined
  /** Further variables of the template, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined
}

export class ChatTemplate {
  readonly #source: string
  readonly #toolSource: string | undefined
  readonly #tokenizer: Tokenizer
  readonly #path: string
  readonly #parsed = new Map<string, Template>()

  /** Undefined when the checkpoint has no template. `file` is chat_template.jinja, which goes before the config's. */
  static of(tokenizer: Tokenizer, file: string | undefined, path: string): ChatTemplate | undefined {
    const named = namedTemplates(file ?? tokenizer.config.chat_template)
    const source = named.get('default') ?? [...named.values()][0]
    return source === undefined ? undefined : new ChatTemplate(source, named.get('tool_use'), tokenizer, path)
  }

  private constructor(source: string, toolSource: string | undefined, tokenizer: Tokenizer, path: string) {
    this.#source = source
    this.#toolSource = toolSource
    this.#tokenizer = tokenizer
    this.#path = path
  }

  /** The prompt. Throws CHAT_TEMPLATE_FAILED with what the template raised. */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    const { addGenerationPrompt = true, tools, variables } = options
    const source = tools && this.#toolSource !== undefined ? this.#toolSource : this.#source
    try {
      return this.#template(source).render({
        ...this.#specialTokens(),
        ...variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
        ...(tools && { tools }),
      })
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause)
      throw fail('CHAT_TEMPLATE_FAILED', { package: this.#path, reason }, cause)
    }
  }

  #template(source: string): Template {
    let template = this.#parsed.get(source)
    if (!template) this.#parsed.set(source, (template = new Template(source)))
    return template
  }

  #specialTokens(): Record<string, string> {
    const tokens: Record<string, string> = {}
    for (const name of ['bos_token', 'eos_token', 'unk_token', 'pad_token']) {
      const token = this.#tokenizer.named(name)
      if (token !== undefined) tokens[name] = token
    }
    return tokens
  }
}

/** A template is a string, or a list of named ones. */
function namedTemplates(value: unknown): Map<string, string> {
  if (typeof value === 'string') return new Map([['default', value]])
  const named = new Map<string, string>()
  for (const entry of Array.isArray(value) ? value : []) {
    const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown }
    if (typeof name === 'string' && typeof template === 'string') named.set(name, template)
  }
  return named
}
