/** Body of the thread that tokenises; see tokenizer.ts. */
import { readFileSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { Tokenizer as Implementation } from '@huggingface/tokenizers'
import { type EncodeReply, type EncodeRequest, encode, type WorkerFiles } from './tokenizer.ts'

const { text, path, config } = workerData as WorkerFiles
const tokenizer = new Implementation(JSON.parse(text ?? readFileSync(path!, 'utf8')), JSON.parse(config))

parentPort?.on('message', ({ id, text, addSpecialTokens }: EncodeRequest) => {
  let reply: EncodeReply
  try {
    reply = { id, ids: encode(tokenizer, text, addSpecialTokens) }
  } catch (error) {
    reply = { id, error: (error as Error).message }
  }
  parentPort?.postMessage(reply)
})
