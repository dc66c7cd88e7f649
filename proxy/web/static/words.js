// What the page says, in Chinese; the English words are the keys.
export const LANGUAGES = { en: "English", zh: "中文" };

const ZH = {
  "Sign in": "登录", "Sign out": "退出", "Name": "用户名", "Password": "密码", "Create an account": "注册账户",
  "I have an account": "已有账户", "Contact (optional)": "联系方式（可选）",
  "Overview": "概览", "Keys": "密钥", "Bill": "账单", "Top up": "充值", "Account": "账户",
  "Available": "可用额度", "Balance": "余额", "Held for calls": "进行中冻结", "Free quota": "免费额度", "Tier": "等级",
  "until {time}": "有效期至 {time}", "This account is {status}: you can look, but not change anything.": "账户状态为 {status}：只能查看，不能修改。",
  "Base URLs": "接口地址", "Region": "地区", "Address": "地址", "Copy": "复制", "Copied": "已复制",
  "A first call": "第一次调用", "Latest calls": "最近调用", "Nothing yet.": "暂无记录。",
  "New key": "新建密钥", "Label": "备注", "Mirror": "线路", "Models": "模型", "All models": "全部模型",
  "Models, separated by commas (optional)": "模型，用逗号分隔（可选）", "Create": "创建", "Key": "密钥", "State": "状态",
  "active": "可用", "revoked": "已吊销", "frozen": "已冻结", "closed": "已关闭", "Rotate": "更换", "Revoke": "吊销", "Rename": "改备注",
  "Your new key": "您的新密钥", "It is shown this once. Keep it where nobody else reads it.": "密钥仅显示这一次，请妥善保存。",
  "Done": "完成", "Cancel": "取消",
  "Rotate “{key}”? The old key is refused at once.": "更换“{key}”？旧密钥将立即失效。",
  "Revoke “{key}”? It cannot be undone.": "吊销“{key}”？此操作不可撤销。",
  "auto": "自动", "Time": "时间", "Model": "模型", "Tokens in / out": "输入 / 输出 Token", "Amount": "金额",
  "What": "项目", "Older": "更早", "Save as CSV": "导出 CSV", "Receipt": "明细", "Close": "关闭", "Usage": "用量", "Price": "单价",
  "Multipliers": "倍率", "Cost": "费用", "Paid from free quota": "免费额度抵扣", "Upload": "上传 (RURT)", "First byte": "首字节", "Duration": "总耗时",
  "Top-up": "充值", "Redeemed code": "兑换码", "Trial credit": "体验金", "Adjustment": "调整", "Refund": "退款",
  "Chargeback": "拒付", "Correction": "更正",
  "From": "从", "To": "到", "Show": "查询", "Redeem a code": "使用兑换码", "Code": "兑换码", "Redeem": "兑换",
  "{amount} {currency} were added.": "已充值 {amount} {currency}。", "This code was redeemed by you before.": "您已使用过该兑换码。",
  "Pay online": "在线支付", "Way of payment": "支付方式", "Continue": "继续", "Pay": "去支付", "Orders": "订单", "Payments": "收支记录", "Reference": "凭证号",
  "To pay": "应付", "paid": "已支付", "not paid yet": "未支付", "Your order {order} is ready.": "订单 {order} 已创建。",
  "Name this order to pay: {order}": "付款时请注明订单号：{order}",
  "Thank you. A payment shows up here as soon as it is confirmed.": "感谢支付，确认后将显示在此页面。",
  "Mirror for all keys that say “auto”": "所有“自动”密钥的默认线路", "Save": "保存", "Saved.": "已保存。",
  "Change the password": "修改密码", "Present password": "当前密码", "New password": "新密码", "Change": "修改",
  "All other sessions were ended.": "其他登录已全部退出。", "The station does not answer. Try again shortly.": "服务暂时没有响应，请稍后再试。",
};

let language = pick();

function pick() {
  const kept = localStorage.getItem("language");
  if (kept in LANGUAGES) return kept;
  return navigator.language.startsWith("zh") ? "zh" : "en";
}

export function currentLanguage() {
  return language;
}

export function choose(next) {
  language = next;
  localStorage.setItem("language", next);
}

/** A text in the language of the page; `{name}` in it is filled in. */
export function t(text, values = {}) {
  const said = language === "zh" ? ZH[text] ?? text : text;
  return said.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}
