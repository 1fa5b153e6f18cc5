/** Body of the thread that tokenises long texts; see tokenizer.ts. */
import { parentPort, workerData } from 'node:worker_threads'
import { Tokenizer as Implementation } from '@huggingface/tokenizers'
import { type EncodeReply, type EncodeRequest, encode, type TokenizerFiles } from './tokenizer.ts'

const files = workerData as TokenizerFiles
const tokenizer = new Implementation(JSON.parse(files.tokenizer), JSON.parse(files.config ?? '{}'))

parentPort?.on('message', ({ id, text, addSpecialTokens }: EncodeRequest) => {
  let reply: EncodeReply
  try {
    reply = { id, ids: encode(tokenizer, text, addSpecialTokens) }
  } catch (error) {
    reply = { id, error: (error as Error).message }
  }
  parentPort?.postMessage(reply)
})
