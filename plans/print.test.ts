import { expect, test } from 'vitest'
import { decoderPlan, menageriePlan } from './example.test-plan.ts'
import { printPlan } from './print.ts'
import { readPlan } from './read.ts'
import { writePlan } from './write.ts'

test('a plan as text', () => {
  expect(printPlan(decoderPlan('bf16', 1))).toBe(
    `plan decoder, format 1, minimum runtime 1
vocabulary 40, hidden 16, context 128
instructions 13, registers 15, states 1, tensors 9 (10448 bytes)

memory, bytes per row of capacity
  space            peak  lower bound  ratio
  tokens            384          384  1.000
  rows              576          576  1.000
  sequences           0            0      -

states
  #layers.0.kv  paged  bf16  2048 bytes a block of 32  align 64  not zeroed  init+reset+evict+clone  rewind any  fork any

tensors, rows x columns and stored bytes
  @embed             bf16  tile16x2  40 x 16  3072
  @layers.0.norm1    f32   row       1 x 16     64
  @layers.0.qkv      bf16  tile16x2  32 x 16  2048
  @inv_freq          f32   row       1 x 4      16
  @layers.0.o        bf16  tile16x2  16 x 16  1024
  @layers.0.norm2    f32   row       1 x 16     64
  @layers.0.gate_up  bf16  tile16x2  48 x 16  3072
  @layers.0.down     bf16  tile16x2  16 x 24  1024
  @norm              f32   row       1 x 16     64

outputs
  tokens      %12
  logprobs    %13
  top_tokens  %14
  logits      %11
  hidden      %10

instructions (%r[a:b]: columns a to b of register r; !: its last read)
   0  %0 tokens f32[16] +0 live 0..4 = embed(table=@embed) vocab=40 width=16  ; embed
   1  %1 tokens f32[16] +64 live 1..2 = rms_norm(x=%0[0:16], weight=@layers.0.norm1) width=16 eps=0.00001  ; layers.0.norm1
   2  %2 tokens f32[32] +128 live 2..3 = linear(x=%1[0:16]!, weight=@layers.0.qkv) n=32 k=16  ; layers.0.qkv
   3  %3 tokens f32[16] +64 live 3..4 = attention(q=%2[0:16]!, k=%2[16:24]!, v=%2[24:32]!, inv_freq=@inv_freq, kv=#layers.0.kv:readwrite) heads=2 kv_heads=1 head_dim=8 scale=0.35355338 rope_dim=8  ; layers.0.attention
   4  %4 tokens f32[16] +128 live 4..8 = linear(x=%3[0:16]!, residual=%0[0:16]!, weight=@layers.0.o) n=16 k=16  ; layers.0.o
   5  %5 tokens f32[16] +0 live 5..6 = rms_norm(x=%4[0:16], weight=@layers.0.norm2) width=16 eps=0.00001  ; layers.0.norm2
   6  %6 tokens f32[48] +192 live 6..7 = linear(x=%5[0:16]!, weight=@layers.0.gate_up) n=48 k=16  ; layers.0.gate_up
   7  %7 tokens f32[24] +0 live 7..8 = glu(gate=%6[0:24]!, up=%6[24:48]!) width=24 activation=silu  ; layers.0.glu
   8  %8 tokens f32[16] +192 live 8..9 = linear(x=%7[0:24]!, residual=%4[0:16]!, weight=@layers.0.down) n=16 k=24  ; layers.0.down
   9  %9 rows f32[16] +0 live 9..10 = gather_rows(x=%8[0:16]!) width=16  ; rows
  10  %10 rows f32[16] +64 live 10..13 = rms_norm(x=%9[0:16]!, weight=@norm) width=16 eps=0.00001  ; norm
  11  %11 rows f32[40] +128 live 11..13 = logits(x=%10[0:16], weight=@embed) vocab=40 k=16  ; head
  12  %12 rows i32[1] +0 live 12..13, %13 rows f32[21] +320 live 12..13, %14 rows i32[20] +448 live 12..13 = sample(logits=%11[0:40]) vocab=40  ; sample
`,
  )
})

test('a plan that was written and read has the same text', () => {
  for (const plan of [decoderPlan(), menageriePlan()])
    expect(printPlan(readPlan(writePlan(plan), 'x'))).toBe(printPlan(plan))
})

test('ids are names, defaults are left out, an unknown id stays a number', () => {
  const text = printPlan(menageriePlan())
  expect(text).toContain('heads=2 head_dim=8 dim=4 style=interleaved  ; rope')
  expect(text).toContain('activation=gelu')
  expect(text).toContain('mode=mean normalize=1')
  expect(text).toContain('#ssm.scan      fixed  f32  256 bytes a slot')
  const plan = menageriePlan()
  plan.instructions.at(-1)!.params = { width: 16, mode: 9, normalize: 0 }
  expect(printPlan(plan)).toContain('width=16 mode=9  ; pool')
})
